#include "message.h"

#include "mac.h"
#include "octets.h"

enum { VERSION = 1 };

static const uint8_t magic[4] = {0xf7, 'T', 'R', 'M'};
static const char person_syn_ack[] = "TRM1sack", person_ack[] = "TRM1_ack";

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

bool tr_write_syn_ack(struct tr_mac *mac, uint8_t fixed[TR_SYN_ACK_FIXED], const uint8_t syn[TR_SYN_FIXED],
                      const uint8_t id[TR_ID_SIZE], const uint8_t nonce[TR_NONCE_SIZE], const struct tr_end *server,
                      const struct tr_end *client, uint32_t assertion_size, const uint8_t key[TR_KEY_SIZE])
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {fixed, TR_SYN_ACK_MAC}};

    write_header(fixed, TR_MESSAGE_SYN_ACK, assertion_size);
    memcpy(fixed + 12, id, TR_ID_SIZE);
    memcpy(fixed + 28, nonce, TR_NONCE_SIZE);
    memcpy(fixed + 44, server->address, 16);
    memcpy(fixed + 60, client->address, 16);
    tr_put16(fixed + 76, server->port);
    tr_put16(fixed + 78, client->port);
    return tr_mac_write(mac, fixed + TR_SYN_ACK_MAC, key, person_syn_ack, parts, 2);
}

void tr_read_ends_untrusted(const uint8_t syn_ack[TR_SYN_ACK_FIXED], struct tr_end *server, struct tr_end *client)
{
    memcpy(server->address, syn_ack + 44, 16);
    memcpy(client->address, syn_ack + 60, 16);
    server->port = tr_get16(syn_ack + 76);
    client->port = tr_get16(syn_ack + 78);
}

bool tr_syn_ack_is_proven(struct tr_mac *mac, const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED],
                          const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {syn_ack, TR_SYN_ACK_MAC}};

    return tr_mac_is_right(mac, syn_ack + TR_SYN_ACK_MAC, key, person_syn_ack, parts, 2);
}

bool tr_write_proof(struct tr_mac *mac, uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED],
                    const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {syn_ack, TR_SYN_ACK_FIXED}, {proof, TR_HEADER}};

    write_header(proof, TR_MESSAGE_ACK, 0);
    return tr_mac_write(mac, proof + TR_HEADER, key, person_ack, parts, 3);
}

bool tr_proof_is_right(struct tr_mac *mac, const uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE],
                       const uint8_t syn[TR_SYN_FIXED], const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {syn_ack, TR_SYN_ACK_FIXED}, {proof, TR_HEADER}};

    return tr_mac_is_right(mac, proof + TR_HEADER, key, person_ack, parts, 3);
}
