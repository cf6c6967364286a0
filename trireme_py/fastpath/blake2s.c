#include "blake2s.h"

#include <string.h>

enum { BLOCK = 64, ROUNDS = 10 };

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint8_t sigma[ROUNDS][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

struct state {
    uint32_t h[8];
    uint32_t counted; /* octets compressed so far; a message of ours is far below 2^32 */
    uint32_t filled;
    uint8_t block[BLOCK];
};

static uint32_t load(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint32_t rotate(uint32_t word, unsigned bits)
{
    return word >> bits | word << (32 - bits);
}

/* Section 3.1. */
#define MIX(a, b, c, d, x, y)       \
    do {                            \
        a = a + b + (x);            \
        d = rotate(d ^ a, 16);      \
        c = c + d;                  \
        b = rotate(b ^ c, 12);      \
        a = a + b + (y);            \
        d = rotate(d ^ a, 8);       \
        c = c + d;                  \
        b = rotate(b ^ c, 7);       \
    } while (0)

/* Section 3.2. */
static void compress(struct state *state, uint32_t last)
{
    uint32_t v[16], m[16];

    for (int i = 0; i < 16; i++)
        m[i] = load(state->block + 4 * i);
    memcpy(v, state->h, sizeof state->h);
    memcpy(v + 8, initial, sizeof initial);
    v[12] ^= state->counted;
    v[14] ^= last;
    for (int round = 0; round < ROUNDS; round++) {
        const uint8_t *s = sigma[round];

        MIX(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
        MIX(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
        MIX(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
        MIX(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
        MIX(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
        MIX(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
        MIX(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
        MIX(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        state->h[i] ^= v[i] ^ v[i + 8];
}

static void update(struct state *state, const uint8_t *data, size_t size)
{
    while (size) {
        size_t room = BLOCK - state->filled;
        size_t taken = size < room ? size : room;

        if (!room) { /* only now, as the last block is compressed differently */
            state->counted += BLOCK;
            compress(state, 0);
            state->filled = 0;
            continue;
        }
        memcpy(state->block + state->filled, data, taken);
        state->filled += (uint32_t)taken;
        data += taken;
        size -= taken;
    }
}

void tr_blake2s_mac(uint8_t mac[TR_MAC_SIZE], const uint8_t key[32], const uint8_t person[8], const struct tr_part *parts,
                    size_t count)
{
    struct state state = {.filled = BLOCK};

    /* Section 2.5: the parameter block, here digest length, key length, fanout 1, depth 1, and the personalisation at its end. */
    memcpy(state.h, initial, sizeof initial);
    state.h[0] ^= (uint32_t)TR_MAC_SIZE | 32u << 8 | 1u << 16 | 1u << 24;
    state.h[6] ^= load(person);
    state.h[7] ^= load(person + 4);
    memcpy(state.block, key, 32); /* section 3.3: the key is the first block, padded */
    for (size_t i = 0; i < count; i++)
        update(&state, parts[i].data, parts[i].size);
    memset(state.block + state.filled, 0, BLOCK - state.filled);
    state.counted += state.filled;
    compress(&state, UINT32_MAX);
    for (int i = 0; i < TR_MAC_SIZE; i++)
        mac[i] = (uint8_t)(state.h[i / 4] >> 8 * (i % 4));
    explicit_bzero(&state, sizeof state); /* it had the key */
}
