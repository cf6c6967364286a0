/* The messages of the exchange: layouts and MACs (wire.py says them once; this is the twin of messages.py). */
#ifndef TRIREME_MESSAGE_H
#define TRIREME_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"
#include "mac.h"

enum { TR_HEADER = 12, TR_SYN_FIXED = 44, TR_SYN_ACK_FIXED = 96, TR_SYN_ACK_MAC = 80, TR_PROOF = 28 };
enum { TR_RESUME_FIXED = 52, TR_RESUME_MAC = 36, TR_CONFIRM = 88, TR_CONFIRM_COUNTER = 28, TR_CONFIRM_ENDS = 36, TR_CONFIRM_MAC = 72 };
enum { TR_ASKS_ANSWER = 1 }; /* wire.ASKS_ANSWER */

/* wire.MessageType. HELLO is laid out as SYN and PROOF as ACK. */
enum tr_message {
    TR_MESSAGE_SYN = 1,
    TR_MESSAGE_SYN_ACK = 2,
    TR_MESSAGE_ACK = 3,
    TR_MESSAGE_HELLO = 4,
    TR_MESSAGE_PROOF = 6,
    TR_MESSAGE_RESUME = 7,
    TR_MESSAGE_CONFIRM = 8,
};

/* A SYN or a SYN-ACK as it came; all point into the packet. */
struct tr_message_view {
    const uint8_t *fixed; /* the octets that later MACs cover: TR_SYN_FIXED or TR_SYN_ACK_FIXED */
    const uint8_t *id;
    const uint8_t *assertion;
    uint32_t assertion_size;
};

/* Whether a payload claims to be a message of ours. */
bool tr_is_message(const uint8_t *payload, uint32_t size);

/* Read a whole payload. False for whatever is not exactly one message of this type and of our version. */
bool tr_read_message_untrusted(struct tr_message_view *, enum tr_message, const uint8_t *payload, uint32_t size);

/* Write the fixed part of a SYN; the assertion goes behind it. */
void tr_write_syn(uint8_t fixed[TR_SYN_FIXED], const uint8_t id[TR_ID_SIZE], const uint8_t nonce[TR_NONCE_SIZE], uint32_t assertion_size);

/* Write the fixed part of a SYN-ACK, MAC included. The ends are the server's own and the client's, as the server sees them.
 * False when the library fails, as the next two. */
bool tr_write_syn_ack(struct tr_mac *, uint8_t fixed[TR_SYN_ACK_FIXED], const uint8_t syn[TR_SYN_FIXED],
                      const uint8_t id[TR_ID_SIZE], const uint8_t nonce[TR_NONCE_SIZE], const struct tr_end *server,
                      const struct tr_end *client, uint32_t assertion_size, const uint8_t key[TR_KEY_SIZE]);

/* The ends that a SYN-ACK names. */
void tr_read_ends_untrusted(const uint8_t syn_ack[TR_SYN_ACK_FIXED], struct tr_end *server, struct tr_end *client);

/* Whether a SYN-ACK's MAC is right. */
bool tr_syn_ack_is_proven(struct tr_mac *, const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED],
                          const uint8_t syn_ack[TR_SYN_ACK_FIXED]);

/* Write the client's proof; and whether one that came, and was read by tr_read_message_untrusted, is right. */
bool tr_write_proof(struct tr_mac *, uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE], const uint8_t syn[TR_SYN_FIXED],
                    const uint8_t syn_ack[TR_SYN_ACK_FIXED]);
bool tr_proof_is_right(struct tr_mac *, const uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE],
                       const uint8_t syn[TR_SYN_FIXED], const uint8_t syn_ack[TR_SYN_ACK_FIXED]);

/* -- datagrams: the twins of datagram_messages.py -- */

/* Write the fixed part of a HELLO; the assertion goes behind it. */
void tr_write_hello(uint8_t fixed[TR_SYN_FIXED], const uint8_t id[TR_ID_SIZE], const uint8_t nonce[TR_NONCE_SIZE], uint32_t assertion_size,
                    bool asks);

/* The ends under a RESUME's MAC: the server's own, and the client's address, as the server saw them when it gave the ticket. */
struct tr_resume_ends {
    const struct tr_end *server;
    const uint8_t *client;
};

/* Write the fixed part of a RESUME, MAC included; the whole HELLO goes behind it. */
bool tr_write_resume(struct tr_mac *, uint8_t fixed[TR_RESUME_FIXED], const uint8_t ticket[TR_NONCE_SIZE], uint64_t counter,
                     const uint8_t hello[TR_SYN_FIXED], uint32_t assertion_size, const uint8_t key[TR_KEY_SIZE],
                     const struct tr_resume_ends *, const struct tr_part *payload);

/* A RESUME as it came. */
struct tr_resume_view {
    const uint8_t *fixed, *ticket;
    uint64_t counter;
    struct tr_message_view hello;
    bool asks;
};
bool tr_read_resume_untrusted(struct tr_resume_view *, const uint8_t *message, uint32_t size);
bool tr_resume_is_proven(struct tr_mac *, const struct tr_resume_view *, const uint8_t key[TR_KEY_SIZE], const struct tr_resume_ends *,
                         const struct tr_part *payload);

/* Write the CONFIRM of a RESUME: the ends are those of this very flow, as the server sees them. */
bool tr_write_confirm(struct tr_mac *, uint8_t confirm[TR_CONFIRM], const uint8_t resume[TR_RESUME_FIXED], const uint8_t hello[TR_SYN_FIXED],
                      const struct tr_end *server, const struct tr_end *client, const uint8_t key[TR_KEY_SIZE]);
void tr_read_confirm_ends_untrusted(const uint8_t confirm[TR_CONFIRM], struct tr_end *server, struct tr_end *client);
bool tr_confirm_is_proven(struct tr_mac *, const uint8_t confirm[TR_CONFIRM], const uint8_t resume[TR_RESUME_FIXED],
                          const uint8_t hello[TR_SYN_FIXED], const uint8_t key[TR_KEY_SIZE]);

/* Write the PROOF that answers a CONFIRM; and whether one that came is right. */
bool tr_write_datagram_proof(struct tr_mac *, uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE], const uint8_t hello[TR_SYN_FIXED],
                             const uint8_t confirm[TR_CONFIRM]);
bool tr_datagram_proof_is_right(struct tr_mac *, const uint8_t proof[TR_PROOF], const uint8_t key[TR_KEY_SIZE],
                                const uint8_t hello[TR_SYN_FIXED], const uint8_t confirm[TR_CONFIRM]);

#endif
