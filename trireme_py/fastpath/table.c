#include "table.h"

#include <stdlib.h>
#include <string.h>

static struct tr_link *link_at(const struct tr_table *table, uint32_t number)
{
    return number ? (struct tr_link *)(table->entries + (size_t)table->stride * (number - 1)) : NULL;
}

static uint32_t number_of(const struct tr_table *table, const void *entry)
{
    return (uint32_t)((size_t)((const uint8_t *)entry - table->entries) / table->stride) + 1;
}

static uint32_t *bucket(const struct tr_table *table, uint32_t hash)
{
    return &table->buckets[hash & (table->limit - 1)];
}

bool tr_table_init(struct tr_table *table, uint32_t limit, size_t stride, size_t key_size, uint64_t ttl_ns)
{
    *table = (struct tr_table){.limit = limit, .stride = (uint32_t)stride, .key_size = (uint32_t)key_size, .ttl_ns = ttl_ns};
    if (limit == 0 || limit > 1u << 24 || limit & (limit - 1))
        return false;
    table->entries = calloc(limit, stride);
    table->buckets = calloc(limit, sizeof *table->buckets);
    if (table->entries && table->buckets)
        return true;
    tr_table_free(table);
    return false;
}

void tr_table_free(struct tr_table *table)
{
    if (table->entries)
        explicit_bzero(table->entries, (size_t)table->unused * table->stride);
    free(table->entries);
    free(table->buckets);
    *table = (struct tr_table){0};
}

void *tr_table_find(const struct tr_table *table, uint64_t hash, const void *key)
{
    struct tr_link *link;

    if (!table->count)
        return NULL;
    link = link_at(table, *bucket(table, (uint32_t)hash));
    while (link && (link->hash != (uint32_t)hash || memcmp(link + 1, key, table->key_size) != 0))
        link = link_at(table, link->next);
    return link;
}

static void append(struct tr_table *table, struct tr_link *link, uint32_t number, uint64_t mono_ns)
{
    link->deadline = mono_ns + table->ttl_ns;
    link->newer = 0;
    link->older = table->newest;
    if (table->newest)
        link_at(table, table->newest)->newer = number;
    else
        table->oldest = number;
    table->newest = number;
}

static void unchain(struct tr_table *table, struct tr_link *link)
{
    if (link->older)
        link_at(table, link->older)->newer = link->newer;
    else
        table->oldest = link->newer;
    if (link->newer)
        link_at(table, link->newer)->older = link->older;
    else
        table->newest = link->older;
}

void *tr_table_add(struct tr_table *table, uint64_t hash, const void *key, uint64_t mono_ns)
{
    uint32_t number = table->free;
    struct tr_link *link;

    if (number) {
        link = link_at(table, number);
        table->free = link->next;
    } else {
        number = ++table->unused;
        link = link_at(table, number);
    }
    link->hash = (uint32_t)hash;
    link->next = *bucket(table, link->hash);
    *bucket(table, link->hash) = number;
    memcpy(link + 1, key, table->key_size);
    append(table, link, number, mono_ns);
    table->count++;
    return link;
}

void tr_table_touch(struct tr_table *table, void *entry, uint64_t mono_ns)
{
    unchain(table, entry);
    append(table, entry, number_of(table, entry), mono_ns);
}

void tr_table_remove(struct tr_table *table, void *entry)
{
    struct tr_link *link = entry;
    uint32_t number = number_of(table, entry);
    uint32_t *at = bucket(table, link->hash);

    while (*at != number)
        at = &link_at(table, *at)->next;
    *at = link->next;
    unchain(table, link);
    explicit_bzero(link, table->stride);
    link->next = table->free;
    table->free = number;
    table->count--;
}

void *tr_table_oldest(const struct tr_table *table)
{
    return link_at(table, table->oldest);
}

void *tr_table_newer(const struct tr_table *table, const void *entry)
{
    return link_at(table, ((const struct tr_link *)entry)->newer);
}
