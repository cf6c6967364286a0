/* SipHash-2-4 (Aumasson and Bernstein, 2012): what the tables are hashed with, so that nobody can choose keys that collide. */
#ifndef TRIREME_SIPHASH_H
#define TRIREME_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t tr_siphash(const uint8_t key[16], const void *data, size_t size);

#endif
