#include "engine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct tr_engine {
    uint8_t seed[16];
};

struct tr_endpoint {
    struct tr_engine *engine;
    pthread_mutex_t lock;
    struct tr_counters counters;
};

struct tr_engine *tr_engine_new(const uint8_t seed[16])
{
    struct tr_engine *engine = calloc(1, sizeof *engine);

    if (engine)
        memcpy(engine->seed, seed, sizeof engine->seed);
    return engine;
}

void tr_engine_free(struct tr_engine *engine)
{
    free(engine);
}

struct tr_endpoint *tr_endpoint_new(struct tr_engine *engine, const struct tr_sizes *sizes)
{
    struct tr_endpoint *endpoint = calloc(1, sizeof *endpoint);

    (void)sizes;
    if (!endpoint)
        return NULL;
    endpoint->engine = engine;
    pthread_mutex_init(&endpoint->lock, NULL);
    return endpoint;
}

void tr_endpoint_free(struct tr_endpoint *endpoint)
{
    pthread_mutex_destroy(&endpoint->lock);
    free(endpoint);
}

void tr_endpoint_lock(struct tr_endpoint *endpoint)
{
    pthread_mutex_lock(&endpoint->lock);
}

void tr_endpoint_unlock(struct tr_endpoint *endpoint)
{
    pthread_mutex_unlock(&endpoint->lock);
}

void tr_engine_receive(struct tr_endpoint *endpoint, const struct tr_packet *packet, const struct tr_instant *now,
                       struct tr_result *result)
{
    (void)now;
    *result = (struct tr_result){
        .verdict = TR_PARK,
        .park = packet->hook == TR_APPLICATION ? TR_PARK_OWNED : TR_PARK_STRANGER,
    };
    endpoint->counters.parked[result->park]++;
}

uint32_t tr_engine_hand_over(struct tr_endpoint *endpoint, const struct tr_packet *packet, uint8_t *out)
{
    (void)endpoint, (void)packet, (void)out;
    return 0;
}

void tr_engine_returned(struct tr_endpoint *endpoint, const uint8_t *data, uint32_t captured, enum tr_hook hook)
{
    (void)endpoint, (void)data, (void)captured, (void)hook;
}

void tr_packet_complete_sum(uint8_t *data, uint32_t captured)
{
    (void)data, (void)captured;
}

uint32_t tr_engine_entropy_room(const struct tr_endpoint *endpoint)
{
    (void)endpoint;
    return 0;
}

void tr_engine_add_entropy(struct tr_endpoint *endpoint, const uint8_t *octets, uint32_t nonces)
{
    (void)endpoint, (void)octets, (void)nonces;
}

uint64_t tr_engine_next_deadline(const struct tr_endpoint *endpoint)
{
    (void)endpoint;
    return UINT64_MAX;
}

void tr_engine_expire(struct tr_endpoint *endpoint, uint64_t mono_ns)
{
    (void)endpoint, (void)mono_ns;
}

void tr_engine_count(struct tr_endpoint *endpoint, enum tr_reason reason, uint64_t packets)
{
    endpoint->counters.drops[reason] += packets;
}

void tr_engine_counters(const struct tr_endpoint *endpoint, struct tr_counters *counters)
{
    *counters = endpoint->counters;
}

void tr_engine_set_translate(struct tr_endpoint *endpoint, tr_translate *translate, void *context)
{
    (void)endpoint, (void)translate, (void)context;
}
