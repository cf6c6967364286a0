/* Numbers in network order, and addresses in the one form that tables and messages have. */
#ifndef TRIREME_OCTETS_H
#define TRIREME_OCTETS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t tr_get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t tr_get32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline uint64_t tr_get64(const uint8_t *at)
{
    return (uint64_t)tr_get32(at) << 32 | tr_get32(at + 4);
}

static inline void tr_put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void tr_put32(uint8_t *at, uint32_t value)
{
    tr_put16(at, (uint16_t)(value >> 16));
    tr_put16(at + 2, (uint16_t)value);
}

static inline void tr_put64(uint8_t *at, uint64_t value)
{
    tr_put32(at, (uint32_t)(value >> 32));
    tr_put32(at + 4, (uint32_t)value);
}

static inline bool tr_is_v4_mapped(const uint8_t address[16])
{
    static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

    return memcmp(address, prefix, sizeof prefix) == 0;
}

/* RFC 4291, section 2.5.5.2 */
static inline void tr_map_v4(uint8_t address[16], const uint8_t v4[4])
{
    memset(address, 0, 10);
    address[10] = address[11] = 0xff;
    memcpy(address + 12, v4, 4);
}

#endif
