/* Messages in the surplus area of UDP datagrams (RFC 9868): read them, put one on, take it off (the twin of surplus.py, which says what open and sealed are). */
#ifndef TRIREME_SURPLUS_H
#define TRIREME_SURPLUS_H

#include "packet.h"

enum { TR_UDP_HEADER = 8, TR_SURPLUS_OVERHEAD = 9 }; /* surplus.OVERHEAD: octets beside the message, at most */

/* A UDP datagram, read; it points into the packet. */
struct tr_datagram {
    struct tr_part payload;
    const uint8_t *message; /* ours; NULL: the surplus holds none */
    uint32_t message_size;
    uint32_t surplus; /* octets of it, ours or not */
    bool sealed;
};

/* Read a UDP packet. False, with the reason, for what is to be dropped; a truncated one is read without payload or surplus. */
bool tr_read_datagram_untrusted(struct tr_datagram *, const struct tr_view *, enum tr_reason *);

/* Write the packet with a message behind its payload, in parts. Returns its octets, or 0 when it would have more than room. */
uint32_t tr_with_message(const struct tr_view *, const struct tr_part *payload, const struct tr_part *message, uint32_t parts, bool sealed,
                         uint8_t *out, uint32_t room);

/* Write the packet without surplus: what the pod's kernel is to see. As above. */
uint32_t tr_without_message(const struct tr_view *, const struct tr_part *payload, uint8_t *out, uint32_t room);

#endif
