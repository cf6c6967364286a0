/* What a stand-in for the engine is not asked where it parks nothing and draws nothing. For one file of a program, behind worker.h or pod.h. */
#include <stdlib.h>

void tr_endpoint_lock(struct tr_endpoint *endpoint)
{
    (void)endpoint;
}

void tr_endpoint_unlock(struct tr_endpoint *endpoint)
{
    (void)endpoint;
}

void tr_engine_count(struct tr_endpoint *endpoint, enum tr_reason reason, uint64_t packets)
{
    (void)endpoint;
    (void)reason;
    (void)packets;
    abort();
}

uint32_t tr_engine_hand_over(struct tr_endpoint *endpoint, const struct tr_packet *packet, uint8_t *out)
{
    (void)endpoint;
    (void)packet;
    (void)out;
    abort();
}

void tr_engine_returned(struct tr_endpoint *endpoint, const uint8_t *data, uint32_t captured, enum tr_hook hook)
{
    (void)endpoint;
    (void)data;
    (void)captured;
    (void)hook;
    abort();
}

uint32_t tr_engine_entropy_room(const struct tr_endpoint *endpoint)
{
    (void)endpoint;
    return 0;
}

void tr_engine_add_entropy(struct tr_endpoint *endpoint, const uint8_t *data, uint32_t nonces)
{
    (void)endpoint;
    (void)data;
    (void)nonces;
    abort();
}
