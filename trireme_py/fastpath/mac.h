/* Keyed BLAKE2s (RFC 7693) with personalisation, 16 octets out, by libcrypto. */
#ifndef TRIREME_MAC_H
#define TRIREME_MAC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TR_MAC_SIZE = 16, TR_MAC_KEY_SIZE = 32 };

/* What a MAC is for: its personalisation (wire.PERSON_…). */
enum tr_role { TR_ROLE_SYN_ACK, TR_ROLE_ACK, TR_ROLE_RESUME, TR_ROLE_CONFIRM, TR_ROLES };

struct tr_part {
    const void *data;
    size_t size;
};

/* A context for each role that is used again and again, by one thread at a time: nothing is allocated for a MAC (bench/handshake.c counts), and
 * no parameter looked up by name. Each keeps its last key until the next one, or its end. */
struct tr_mac;
struct tr_mac *tr_mac_new(void); /* NULL without memory, or where libcrypto offers no BLAKE2SMAC */
void tr_mac_free(struct tr_mac *);

/* Write the MAC of the parts, one after the other. False, with nothing written, when the library fails. */
bool tr_mac_write(struct tr_mac *, uint8_t mac[TR_MAC_SIZE], const uint8_t key[TR_MAC_KEY_SIZE], enum tr_role,
                  const struct tr_part *parts, size_t count);

/* Whether a MAC is that of the parts; compared in constant time. */
bool tr_mac_is_right(struct tr_mac *, const uint8_t mac[TR_MAC_SIZE], const uint8_t key[TR_MAC_KEY_SIZE],
                     enum tr_role, const struct tr_part *parts, size_t count);

#endif
