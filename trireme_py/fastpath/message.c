#include "message.h"

#include "mac.h"
#include "octets.h"

enum { VERSION = 1 };

static const uint8_t magic[4] = {0xf7, 'T', 'R', 'M'};

bool tr_is_message(const uint8_t *payload, uint32_t size)
{
    return size >= sizeof magic && memcmp(payload, magic, sizeof magic) == 0;
}

static uint32_t fixed_size(enum tr_message type)
{
    switch (type) {
    case TR_MESSAGE_SYN:
    case TR_MESSAGE_HELLO:
        return TR_SYN_FIXED;
    case TR_MESSAGE_SYN_ACK:
        return TR_SYN_ACK_FIXED;
    case TR_MESSAGE_RESUME:
        return TR_RESUME_FIXED + TR_SYN_FIXED;
    case TR_MESSAGE_CONFIRM:
        return TR_CONFIRM;
    default:
        return TR_PROOF;
    }
}

static bool carries_assertion(enum tr_message type)
{
    return type != TR_MESSAGE_ACK && type != TR_MESSAGE_PROOF && type != TR_MESSAGE_CONFIRM;
}

bool tr_read_message_untrusted(struct tr_message_view *view, enum tr_message type, const uint8_t *payload, uint32_t size)
{
    uint32_t fixed = fixed_size(type), assertion;

    if (size < fixed || !tr_is_message(payload, size))
        return false;
    if (payload[4] != VERSION || payload[5] != type || payload[6] < VERSION || payload[7] & ~(type == TR_MESSAGE_HELLO ? TR_ASKS_ANSWER : 0))
        return false;
    assertion = tr_get16(payload + 10);
    if (tr_get16(payload + 8) != size || size != fixed + assertion || assertion > TR_MAX_ASSERTION)
        return false;
    if (assertion && !carries_assertion(type))
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
    return tr_mac_write(mac, fixed + TR_SYN_ACK_MAC, key, TR_ROLE_SYN_ACK, parts, 2);
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

    return tr_mac_is_right(mac, syn_ack + TR_SYN_ACK_MAC, key, TR_ROLE_SYN_ACK, parts, 2);
}

bool tr_write_proof(struct tr_mac *mac, uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED],
                    const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {syn_ack, TR_SYN_ACK_FIXED}, {proof, TR_HEADER}};

    write_header(proof, TR_MESSAGE_ACK, 0);
    return tr_mac_write(mac, proof + TR_HEADER, key, TR_ROLE_ACK, parts, 3);
}

bool tr_proof_is_right(struct tr_mac *mac, const uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE],
                       const uint8_t syn[TR_SYN_FIXED], const uint8_t syn_ack[TR_SYN_ACK_FIXED])
{
    const struct tr_part parts[] = {{syn, TR_SYN_FIXED}, {syn_ack, TR_SYN_ACK_FIXED}, {proof, TR_HEADER}};

    return tr_mac_is_right(mac, proof + TR_HEADER, key, TR_ROLE_ACK, parts, 3);
}

/* -- datagrams -- */

void tr_write_hello(uint8_t fixed[TR_SYN_FIXED], const uint8_t id[TR_ID_SIZE], const uint8_t nonce[TR_NONCE_SIZE], uint32_t assertion_size,
                    bool asks)
{
    tr_write_syn(fixed, id, nonce, assertion_size);
    fixed[5] = TR_MESSAGE_HELLO;
    fixed[7] = asks ? TR_ASKS_ANSWER : 0;
}

/* What RESUME's MAC covers; ports and addresses in the form of messages. */
enum { RESUME_PARTS = 6 };

static void resume_parts(struct tr_part parts[RESUME_PARTS], const uint8_t *fixed, const uint8_t *hello, const struct tr_resume_ends *ends,
                         uint8_t port[2], const struct tr_part *payload)
{
    tr_put16(port, ends->server->port);
    parts[0] = (struct tr_part){fixed, TR_RESUME_MAC};
    parts[1] = (struct tr_part){hello, TR_SYN_FIXED};
    parts[2] = (struct tr_part){ends->server->address, 16};
    parts[3] = (struct tr_part){ends->client, 16};
    parts[4] = (struct tr_part){port, 2};
    parts[5] = *payload;
}

bool tr_write_resume(struct tr_mac *mac, uint8_t fixed[TR_RESUME_FIXED], const uint8_t ticket[TR_NONCE_SIZE], uint64_t counter,
                     const uint8_t hello[TR_SYN_FIXED], uint32_t assertion_size, const uint8_t key[TR_KEY_SIZE],
                     const struct tr_resume_ends *ends, const struct tr_part *payload)
{
    struct tr_part parts[RESUME_PARTS];
    uint8_t port[2];

    write_header(fixed, TR_MESSAGE_RESUME, assertion_size);
    memcpy(fixed + 12, ticket, TR_NONCE_SIZE);
    tr_put64(fixed + 28, counter);
    resume_parts(parts, fixed, hello, ends, port, payload);
    return tr_mac_write(mac, fixed + TR_RESUME_MAC, key, TR_ROLE_RESUME, parts, RESUME_PARTS);
}

bool tr_read_resume_untrusted(struct tr_resume_view *view, const uint8_t *message, uint32_t size)
{
    struct tr_message_view whole;

    if (!tr_read_message_untrusted(&whole, TR_MESSAGE_RESUME, message, size))
        return false;
    if (!tr_read_message_untrusted(&view->hello, TR_MESSAGE_HELLO, message + TR_RESUME_FIXED, size - TR_RESUME_FIXED))
        return false;
    view->fixed = message;
    view->ticket = message + 12;
    view->counter = tr_get64(message + 28);
    view->asks = view->hello.fixed[7] & TR_ASKS_ANSWER;
    return true;
}

bool tr_resume_is_proven(struct tr_mac *mac, const struct tr_resume_view *resume, const uint8_t key[TR_KEY_SIZE],
                         const struct tr_resume_ends *ends, const struct tr_part *payload)
{
    struct tr_part parts[RESUME_PARTS];
    uint8_t port[2];

    resume_parts(parts, resume->fixed, resume->hello.fixed, ends, port, payload);
    return tr_mac_is_right(mac, resume->fixed + TR_RESUME_MAC, key, TR_ROLE_RESUME, parts, RESUME_PARTS);
}

bool tr_write_confirm(struct tr_mac *mac, uint8_t confirm[TR_CONFIRM], const uint8_t resume[TR_RESUME_FIXED], const uint8_t hello[TR_SYN_FIXED],
                      const struct tr_end *server, const struct tr_end *client, const uint8_t key[TR_KEY_SIZE])
{
    const struct tr_part parts[] = {{resume, TR_RESUME_FIXED}, {hello, TR_SYN_FIXED}, {confirm, TR_CONFIRM_MAC}};

    write_header(confirm, TR_MESSAGE_CONFIRM, 0);
    memcpy(confirm + 12, resume + 12, TR_NONCE_SIZE + 8); /* ticket and counter */
    memcpy(confirm + TR_CONFIRM_ENDS, server->address, 16);
    memcpy(confirm + TR_CONFIRM_ENDS + 16, client->address, 16);
    tr_put16(confirm + TR_CONFIRM_ENDS + 32, server->port);
    tr_put16(confirm + TR_CONFIRM_ENDS + 34, client->port);
    return tr_mac_write(mac, confirm + TR_CONFIRM_MAC, key, TR_ROLE_CONFIRM, parts, 3);
}

void tr_read_confirm_ends_untrusted(const uint8_t confirm[TR_CONFIRM], struct tr_end *server, struct tr_end *client)
{
    memcpy(server->address, confirm + TR_CONFIRM_ENDS, 16);
    memcpy(client->address, confirm + TR_CONFIRM_ENDS + 16, 16);
    server->port = tr_get16(confirm + TR_CONFIRM_ENDS + 32);
    client->port = tr_get16(confirm + TR_CONFIRM_ENDS + 34);
}

bool tr_confirm_is_proven(struct tr_mac *mac, const uint8_t confirm[TR_CONFIRM], const uint8_t resume[TR_RESUME_FIXED],
                          const uint8_t hello[TR_SYN_FIXED], const uint8_t key[TR_KEY_SIZE])
{
    const struct tr_part parts[] = {{resume, TR_RESUME_FIXED}, {hello, TR_SYN_FIXED}, {confirm, TR_CONFIRM_MAC}};

    return tr_mac_is_right(mac, confirm + TR_CONFIRM_MAC, key, TR_ROLE_CONFIRM, parts, 3);
}

/* A CONFIRM without its counter and MAC: one proof does for whichever of a flow's arrives first. */
enum { PROOF_PARTS = 4 };

static void proof_parts(struct tr_part parts[PROOF_PARTS], const uint8_t *hello, const uint8_t *confirm, const uint8_t *proof)
{
    parts[0] = (struct tr_part){hello, TR_SYN_FIXED};
    parts[1] = (struct tr_part){confirm, TR_CONFIRM_COUNTER};
    parts[2] = (struct tr_part){confirm + TR_CONFIRM_ENDS, TR_CONFIRM_MAC - TR_CONFIRM_ENDS};
    parts[3] = (struct tr_part){proof, TR_HEADER};
}

bool tr_write_datagram_proof(struct tr_mac *mac, uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE], const uint8_t hello[TR_SYN_FIXED],
                             const uint8_t confirm[TR_CONFIRM])
{
    struct tr_part parts[PROOF_PARTS];

    write_header(proof, TR_MESSAGE_PROOF, 0);
    proof_parts(parts, hello, confirm, proof);
    return tr_mac_write(mac, proof + TR_HEADER, key, TR_ROLE_ACK, parts, PROOF_PARTS);
}

bool tr_datagram_proof_is_right(struct tr_mac *mac, const uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE],
                                const uint8_t hello[TR_SYN_FIXED], const uint8_t confirm[TR_CONFIRM])
{
    struct tr_part parts[PROOF_PARTS];

    proof_parts(parts, hello, confirm, proof);
    return tr_mac_is_right(mac, proof + TR_HEADER, key, TR_ROLE_ACK, parts, PROOF_PARTS);
}
