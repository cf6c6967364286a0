/* Keyed BLAKE2s with personalisation, 16 octets out: the reference algorithm of RFC 7693, and nothing beyond what the MACs need.
 *
 * Why not libcrypto's: its BLAKE2SMAC takes several times as long as the compression itself and allocates whenever a context gets
 * its key (docs/fastpath.md has the numbers), and the same MAC is to be had where no library is. */
#ifndef TRIREME_BLAKE2S_H
#define TRIREME_BLAKE2S_H

#include <stddef.h>
#include <stdint.h>

enum { TR_MAC_SIZE = 16 };

struct tr_part {
    const void *data;
    size_t size;
};

/* MAC of the parts, one after the other, under a key of 32 octets and a personalisation of 8. */
void tr_blake2s_mac(uint8_t mac[TR_MAC_SIZE], const uint8_t key[32], const uint8_t person[8], const struct tr_part *parts,
                    size_t count);

#endif
