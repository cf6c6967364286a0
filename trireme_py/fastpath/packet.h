/* IPv4, IPv6 and TCP as the engine needs them: look at a packet, put another payload on it (the twin of packet.py).
 * Layouts: RFC 791, RFC 8200, RFC 9293. */
#ifndef TRIREME_PACKET_H
#define TRIREME_PACKET_H

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"
#include "mac.h"

enum { TR_FIN = 0x01, TR_SYN = 0x02, TR_RST = 0x04, TR_ACK = 0x10, TR_URG = 0x20 };
enum { TR_ICMP = 1, TR_TCP = 6, TR_UDP = 17, TR_ICMPV6 = 58, TR_SCTP = 132 };
enum { TR_MAX_IPV6_EXTENSION_HEADERS = 8 }; /* wire.MAX_IPV6_EXTENSION_HEADERS */

struct tr_view {
    const uint8_t *data;
    uint32_t length;   /* as the IP header says */
    uint32_t captured; /* at most length */
    uint32_t transport;
    uint32_t body;     /* of TCP: where the payload begins */
    uint32_t sequence, acknowledgement;
    uint16_t source_port, destination_port;
    uint8_t version, protocol, flags;
    uint8_t source[16], destination[16]; /* IPv4 as ::ffff:a.b.c.d */
};

static inline const uint8_t *tr_payload(const struct tr_view *view)
{
    return view->data + view->body;
}

/* Octets of TCP payload that were copied. */
static inline uint32_t tr_payload_size(const struct tr_view *view)
{
    return view->captured - view->body;
}

/* Read the headers. False, with the reason, for what is to be dropped. */
bool tr_parse_untrusted(struct tr_view *, const uint8_t *data, uint32_t captured, enum tr_reason *);

/* Read what an ICMP error quotes: addresses and ports only. False when it is no error, or quotes too little. */
bool tr_parse_quoted_untrusted(struct tr_view *quoted, const struct tr_view *icmp);

/* Whether a TCP packet arrived as its sender summed it; false for a truncated one. */
bool tr_checksum_is_right(const struct tr_view *);

/* Whether a TCP packet carries a Fast Open option (RFC 7413), of either numbering. */
bool tr_has_fast_open(const struct tr_view *);

/* Write the packet with another TCP payload and sequence number, lengths and checksums renewed. Returns its octets, or 0 when
 * it would have more than room. */
uint32_t tr_rewrite(const struct tr_view *, uint32_t sequence, const struct tr_part *payload, uint32_t parts, uint8_t *out,
                    uint32_t room);

/* -- for those who build packets themselves (surplus.c) -- */

/* The sum of RFC 1071 over octets, on top of what was summed before, which must have been an even number of octets; unfolded. */
uint64_t tr_sum(uint64_t so_far, const uint8_t *at, uint32_t size);
uint64_t tr_sum_pseudo_header(const struct tr_view *, uint32_t size); /* of a transport segment of so many octets */
uint16_t tr_sum_fold(uint64_t total);

/* Have the IP header at `out`, a copy of the view's, say that the packet has `size` octets. */
void tr_renew_lengths(const struct tr_view *, uint8_t *out, uint32_t size);

#endif
