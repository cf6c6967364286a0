#include "message.h"

#include "blake2s.h"
#include "octets.h"

enum { VERSION = 1 };

static const uint8_t magic[4] = {0xf7, 'T', 'R', 'M'};
static const uint8_t person_syn_ack[8] = {'T', 'R', 'M', '1', 's', 'a', 'c', 'k'};
static const uint8_t person_ack[8] = {'T', 'R', 'M', '1', '_', 'a', 'c', 'k'};

bool tr_is_message(const uint8_t *payload, uint32_t size)
{
    return size >= sizeof magic && memcmp(payload, magic, sizeof magic) == 0;
}

static uint32_t fixed_size(enum tr_message type)
{
    return type == TR_MESSAGE_SYN ? TR_SYN_FIXED : type == TR_MESSAGE_SYN_ACK ? TR_SYN_ACK_FIXED : TR_PROOF;
}

bool tr_read_message_untrusted(struct tr_message_view *view, enum tr_message type, const uint8_t *payload, uint32_t size)
{
    uint32_t fixed = fixed_size(type), assertion;

    if (size < fixed || !tr_is_message(payload, size))
        return false;
    if (payload[4] != VERSION || payload[5] != type || payload[6] < VERSION || payload[7] != 0)
        return false;
    assertion = tr_get16(payload + 10);
    if (tr_get16(payload + 8) != size || size != fixed + assertion || assertion > TR_MAX_ASSERTION)
        return false;
    *view = (struct tr_message_view){payload, payload + TR_HEADER, payload + fixed, assertion};
    return true;
}

static void write_header(uint8_t *at, enum tr_message type, uint32_t assertion_size)
{
    memcpy(at, magic, sizeof magic);
    at[4] = VERSION;
    at[5] = (uint8_t)type;
    at[6] = VERSION;
    at[7] = 0;
    tr_put16(at + 8, (uint16_t)(fixed_size(type) + assertion_size));
    tr_put16(at + 10, (uint16_t)assertion_size);
}

void tr_write_syn(uint8_t fixed[TR_SYN_FIXED], const uint8_t id[TR_ID_SIZE], const uint8_t nonce[TR_NONCE_SIZE], uint32_t assertion_size)
{
    write_header(fixed, TR_MESSAGE_SYN, assertion_size);
    memcpy(fixed + 12, id, TR_ID_SIZE);
    memcpy(fixed + 28, nonce, TR_NONCE_SIZE);
}

static void syn_ack_mac(uint8_t mac[TR_MAC_SIZE], const uint8_t *key, const uint8_t *syn, const uint8_t *syn_ack)
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {syn_ack, TR_SYN_ACK_MAC}};

    tr_blake2s_mac(mac, key, person_syn_ack, parts, 2);
}

void tr_write_syn_ack(uint8_t fixed[TR_SYN_ACK_FIXED], const uint8_t syn[TR_SYN_FIXED], const uint8_t id[TR_ID_SIZE],
                      const uint8_t nonce[TR_NONCE_SIZE], const struct tr_end *server, const struct tr_end *client,
                      uint32_t assertion_size, const uint8_t key[TR_KEY_SIZE])
{
    write_header(fixed, TR_MESSAGE_SYN_ACK, assertion_size);
    memcpy(fixed + 12, id, TR_ID_SIZE);
    memcpy(fixed + 28, nonce, TR_NONCE_SIZE);
    memcpy(fixed + 44, server->address, 16);
    memcpy(fixed + 60, client->address, 16);
    tr_put16(fixed + 76, server->port);
    tr_put16(fixed + 78, client->port);
    syn_ack_mac(fixed + TR_SYN_ACK_MAC, key, syn, fixed);
}

void tr_read_ends_untrusted(const uint8_t syn_ack[TR_SYN_ACK_FIXED], struct tr_end *server, struct tr_end *client)
{
    memcpy(server->address, syn_ack + 44, 16);
    memcpy(client->address, syn_ack + 60, 16);
    server->port = tr_get16(syn_ack + 76);
    client->port = tr_get16(syn_ack + 78);
}

/* In constant time. */
static bool same_mac(const uint8_t one[TR_MAC_SIZE], const uint8_t other[TR_MAC_SIZE])
{
    volatile uint8_t different = 0;

    for (int i = 0; i < TR_MAC_SIZE; i++)
        different = (uint8_t)(different | (one[i] ^ other[i]));
    return different == 0;
}

bool tr_syn_ack_is_proven(const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED], const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    uint8_t expected[TR_MAC_SIZE];

    syn_ack_mac(expected, key, syn, syn_ack);
    return same_mac(expected, syn_ack + TR_SYN_ACK_MAC);
}

static void proof_mac(uint8_t mac[TR_MAC_SIZE], const uint8_t *key, const uint8_t *syn, const uint8_t *syn_ack, const uint8_t *header)
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {syn_ack, TR_SYN_ACK_FIXED}, {header, TR_HEADER}};

    tr_blake2s_mac(mac, key, person_ack, parts, 3);
}

void tr_write_proof(uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED],
                    const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    write_header(proof, TR_MESSAGE_ACK, 0);
    proof_mac(proof + TR_HEADER, key, syn, syn_ack, proof);
}

bool tr_proof_is_right(const uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED],
                       const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    uint8_t expected[TR_MAC_SIZE];

    proof_mac(expected, key, syn, syn_ack, proof);
    return same_mac(expected, proof + TR_HEADER);
}
