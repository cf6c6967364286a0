/* A hash table of fixed size: the oldest entry makes room, and what is not touched expires (the twin of flows.BoundedTable).
 *
 * An entry begins with a struct tr_link, then its key, then whatever the caller keeps. Entries never move. All memory is taken at
 * once and becomes resident as entries are used; the same ones are used again first. Entries are wiped as they are removed. */
#ifndef TRIREME_TABLE_H
#define TRIREME_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tr_link {
    uint64_t deadline;            /* monotonic ns */
    uint32_t hash;
    uint32_t next;                /* in its bucket; all of these are an entry's number plus one, zero: none */
    uint32_t older, newer;
};

struct tr_table {
    uint8_t *entries;
    uint32_t *buckets;
    uint64_t ttl_ns;
    uint32_t stride, key_size;
    uint32_t limit;               /* a power of two */
    uint32_t count;
    uint32_t unused;              /* entries from here on were never used */
    uint32_t free, oldest, newest;
};

#define TR_FOREVER (UINT64_C(1) << 62)

/* Take memory for `limit` entries of `stride` octets whose key has `key_size`. False without memory, or for a limit that is no power of two. */
bool tr_table_init(struct tr_table *, uint32_t limit, size_t stride, size_t key_size, uint64_t ttl_ns);
void tr_table_free(struct tr_table *);

void *tr_table_find(const struct tr_table *, uint64_t hash, const void *key);

/* Add an entry, zeroed but for link and key. The key must not be there, and the table not full. */
void *tr_table_add(struct tr_table *, uint64_t hash, const void *key, uint64_t mono_ns);
void tr_table_touch(struct tr_table *, void *entry, uint64_t mono_ns);
void tr_table_remove(struct tr_table *, void *entry);

/* The entry that expires next, NULL in an empty table; and the one after it. */
void *tr_table_oldest(const struct tr_table *);
void *tr_table_newer(const struct tr_table *, const void *entry);

/* Ask for the memory that tr_table_find will look at first: for several tables at once it then takes as long as for one. */
static inline void tr_table_prefetch(const struct tr_table *table, uint64_t hash)
{
    if (table->count)
        __builtin_prefetch(&table->buckets[(uint32_t)hash & (table->limit - 1)]);
}

static inline bool tr_table_full(const struct tr_table *table)
{
    return table->count == table->limit;
}

#endif
