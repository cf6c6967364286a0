/* CPU time and heap allocations, libcrypto's included, of whole warm handshakes through the fast path's engine, both ends, packets in
 * memory; and of questions in UDP from a fresh port each, with their answers. bench_handshake.py compiles and runs it, linked with --wrap=malloc,calloc,realloc. */
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "mac.h"
#include "octets.h"
#include "packet.h"
#include "teach.h"

enum { ASSERTION = 261 }; /* PSK, two labels: docs/protocol.md, "Byte budget" */

static unsigned long allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);

void *__wrap_malloc(size_t size)
{
    allocations++;
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    allocations++;
    return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    allocations++;
    return __real_realloc(old, size);
}

static void *crypto_malloc(size_t size, const char *file, int line)
{
    (void)file, (void)line;
    allocations++;
    return __real_malloc(size);
}

static void *crypto_realloc(void *old, size_t size, const char *file, int line)
{
    (void)file, (void)line;
    allocations++;
    return __real_realloc(old, size);
}

static void crypto_free(void *old, const char *file, int line)
{
    (void)file, (void)line;
    free(old);
}

static double cpu_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void fail(const char *what)
{
    fprintf(stderr, "handshake: %s\n", what);
    exit(1);
}

struct pod {
    struct tr_endpoint *endpoint;
    struct tr_token *token;
    uint8_t address[16];
};

static void make_pod(struct pod *pod, struct tr_engine *engine, uint32_t number)
{
    const struct tr_sizes sizes = {8192, 65536, 32768, 65536, 131072, 4096, 16384};
    uint8_t assertion[ASSERTION], id[TR_ID_SIZE];

    memset(assertion, (int)number, sizeof assertion);
    memset(id, (int)number, sizeof id);
    tr_map_v4(pod->address, (const uint8_t[]){10, 1, 0, (uint8_t)number});
    pod->endpoint = tr_endpoint_new(engine, &sizes);
    pod->token = tr_token_new(number, id, assertion, sizeof assertion, 1e12);
    if (!pod->endpoint || !pod->token)
        fail("no memory");
    tr_teach_identity(pod->endpoint, pod->token);
}

static void acquaint(struct pod *one, const struct pod *other, uint8_t direction)
{
    struct tr_lesson lesson = {.direction = direction, .reason = 1, .protocol = TR_TCP, .port = 80, .policy = 1, .key = "the key of these two"};
    struct tr_end end = {.port = 80};

    memcpy(lesson.address, other->address, 16);
    if (!tr_teach(one->endpoint, other->token, one->token, &lesson))
        fail("not taught");
    memcpy(end.address, other->address, 16);
    tr_teach_target(one->endpoint, &end);
}

/* A kernel's packet, with the options that Linux has: MSS, SACK, timestamps, window scale. */
static uint32_t kernel_packet(uint8_t *out, const struct pod *from, uint16_t sport, const struct pod *to, uint16_t dport, uint8_t flags,
                              uint32_t sequence, uint32_t acknowledgement)
{
    static const uint8_t options[20] = {2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7};

    memset(out, 0, 60);
    out[0] = 0x45;
    tr_put16(out + 2, 60);
    out[6] = 0x40;
    out[8] = 64;
    out[9] = TR_TCP;
    memcpy(out + 12, from->address + 12, 4);
    memcpy(out + 16, to->address + 12, 4);
    tr_put16(out + 20, sport);
    tr_put16(out + 22, dport);
    tr_put32(out + 24, sequence);
    tr_put32(out + 28, acknowledgement);
    out[32] = 10 << 4;
    out[33] = flags;
    memcpy(out + 40, options, sizeof options);
    tr_packet_complete_sum(out, 60);
    return 60;
}

/* Through one end; what comes out is left in `data`. */
static uint32_t pass(struct pod *pod, enum tr_hook hook, uint8_t *data, uint32_t size, enum tr_verdict wanted, const struct tr_instant *now)
{
    static uint8_t out[TR_ROOM];
    const struct tr_packet packet = {.data = data, .captured = size, .hook = hook, .out = out, .room = sizeof out};
    struct tr_result result;

    if (tr_engine_entropy_room(pod->endpoint) > 32) {
        static const uint8_t nonces[32 * TR_NONCE_SIZE];

        tr_engine_add_entropy(pod->endpoint, nonces, 32);
    }
    tr_engine_receive(pod->endpoint, &packet, now, &result);
    if (result.verdict != wanted)
        fail("not answered by the engine");
    if (result.length)
        memcpy(data, out, result.length);
    return result.length ? result.length : size;
}

static void handshake(struct pod *client, struct pod *server, uint32_t number, const struct tr_instant *now)
{
    uint16_t port = (uint16_t)(1024 + number % 60000);
    uint8_t data[TR_ROOM];
    uint32_t size;

    size = kernel_packet(data, client, port, server, 80, TR_SYN, number, 0);
    size = pass(client, TR_APPLICATION, data, size, TR_PASS_CLEAR, now);
    pass(server, TR_NETWORK, data, size, TR_PASS, now);
    size = kernel_packet(data, server, 80, client, port, TR_SYN | TR_ACK, ~number, number + 1);
    size = pass(server, TR_APPLICATION, data, size, TR_PASS_CLEAR, now);
    pass(client, TR_NETWORK, data, size, TR_PASS, now);
    size = kernel_packet(data, client, port, server, 80, TR_ACK, number + 1, ~number + 1);
    size = pass(client, TR_APPLICATION, data, size, TR_ACCEPT, now);
    pass(server, TR_NETWORK, data, size, TR_ACCEPT, now);
}

/* Have two pods know each other from an exchange of a moment ago. */
static void introduce(struct pod *client, struct pod *server, const struct tr_instant *now)
{
    struct tr_exchange exchange = {.local = client->token, .peer = server->token, .ticket = "a ticket", .key = "the key of these two",
                                   .server = {.port = 53}, .not_after = 1e12};
    struct tr_lesson lesson = {.direction = TR_EGRESS, .reason = 1, .protocol = TR_UDP, .port = 53, .policy = 1, .key = "the key of these two"};
    struct tr_session *counter = tr_session_new(1), *window = tr_session_new(2);

    if (!counter || !window)
        fail("no memory");
    tr_session_touch(counter, now->mono_ns);
    tr_session_touch(window, now->mono_ns);
    memcpy(exchange.server.address, server->address, 16);
    memcpy(exchange.client, client->address, 16);
    memcpy(lesson.address, server->address, 16);
    if (!tr_teach_warm(client->endpoint, &exchange.server, counter, &exchange, 1, true) ||
        !tr_teach(client->endpoint, server->token, client->token, &lesson))
        fail("not taught");
    exchange.local = server->token;
    exchange.peer = client->token;
    tr_teach_ticket(server->endpoint, window, &exchange);
    lesson.direction = TR_INGRESS;
    memcpy(lesson.address, client->address, 16);
    if (!tr_teach(server->endpoint, client->token, server->token, &lesson))
        fail("not taught");
    tr_session_release(counter);
    tr_session_release(window);
}

static uint32_t kernel_datagram(uint8_t *out, const struct pod *from, uint16_t sport, const struct pod *to, uint16_t dport, uint32_t payload)
{
    uint32_t size = 28 + payload;

    memset(out, 0, size);
    out[0] = 0x45;
    tr_put16(out + 2, (uint16_t)size);
    out[8] = 64;
    out[9] = TR_UDP;
    memcpy(out + 12, from->address + 12, 4);
    memcpy(out + 16, to->address + 12, 4);
    tr_put16(out + 20, sport);
    tr_put16(out + 22, dport);
    tr_put16(out + 24, (uint16_t)(8 + payload));
    tr_packet_complete_sum(out, size);
    return size;
}

/* A question and its answer, as large as those of DNS. */
static void query(struct pod *client, struct pod *server, uint32_t number, const struct tr_instant *now)
{
    uint16_t port = (uint16_t)(1024 + number % 60000);
    uint8_t data[TR_ROOM];
    uint32_t size;

    size = kernel_datagram(data, client, port, server, 53, 40);
    size = pass(client, TR_APPLICATION, data, size, TR_PASS, now);
    pass(server, TR_NETWORK, data, size, TR_PASS, now);
    size = kernel_datagram(data, server, 53, client, port, 120);
    size = pass(server, TR_APPLICATION, data, size, TR_PASS, now);
    pass(client, TR_NETWORK, data, size, TR_PASS, now);
}

typedef void exchange(struct pod *client, struct pod *server, uint32_t number, const struct tr_instant *now);

/* Processor time of one exchange; adds the heap allocations of all. */
static double each_us(exchange *exchange, struct pod *client, struct pod *server, uint32_t rounds, struct tr_instant *now, unsigned long *allocated)
{
    unsigned long before = allocations;
    double begun = cpu_us();

    for (uint32_t i = 0; i < rounds; i++) {
        now->mono_ns += 100000;
        exchange(client, server, i, now);
        tr_engine_expire(client->endpoint, now->mono_ns);
        tr_engine_expire(server->endpoint, now->mono_ns);
    }
    *allocated += allocations - before;
    return (cpu_us() - begun) / rounds;
}

static double mac_us(uint32_t rounds)
{
    uint8_t key[32] = "a key", octets[16], syn[44] = {0}, syn_ack[96] = {0}, header[12] = {0};
    const struct tr_part parts[] = {{syn, sizeof syn}, {syn_ack, sizeof syn_ack}, {header, sizeof header}};
    struct tr_mac *mac = tr_mac_new();
    double begun = cpu_us();

    for (uint32_t i = 0; i < rounds; i++) {
        key[0] = (uint8_t)i;
        if (!mac || !tr_mac_write(mac, octets, key, TR_ROLE_ACK, parts, 3))
            fail("no MAC");
    }
    tr_mac_free(mac);
    return (cpu_us() - begun) / rounds;
}

/* Peers that are known as well, so that tables are as full as they would be. */
static void crowd(struct pod *pod, uint32_t peers)
{
    for (uint32_t i = 0; i < peers; i++) {
        uint8_t assertion[ASSERTION] = {0}, id[TR_ID_SIZE] = {1};
        struct pod peer;

        memcpy(id + 4, &i, sizeof i);
        tr_map_v4(peer.address, (const uint8_t[]){10, 2, (uint8_t)(i >> 8), (uint8_t)i});
        peer.token = tr_token_new(1000 + i, id, assertion, sizeof assertion, 1e12);
        if (!peer.token)
            fail("no memory");
        acquaint(pod, &peer, TR_EGRESS);
        acquaint(pod, &peer, TR_INGRESS);
        tr_token_release(peer.token);
    }
}

int main(int argc, char **argv)
{
    uint32_t rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 200000;
    uint32_t peers = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    struct tr_instant now = {1000000000, 1e9};
    struct tr_engine *engine;
    struct pod client, server;
    unsigned long allocated = 0;
    double spent, query_us;

    if (!rounds || !CRYPTO_set_mem_functions(crypto_malloc, crypto_realloc, crypto_free))
        fail("usage: handshake [HANDSHAKES [PEERS]]");
    engine = tr_engine_new((const uint8_t *)"sixteen  octets.");
    if (!engine)
        fail("no memory");
    make_pod(&client, engine, 2);
    make_pod(&server, engine, 3);
    acquaint(&client, &server, TR_EGRESS);
    acquaint(&server, &client, TR_INGRESS);
    crowd(&client, peers);
    crowd(&server, peers);
    spent = each_us(handshake, &client, &server, rounds, &now, &allocated);
    introduce(&client, &server, &now);
    query_us = each_us(query, &client, &server, rounds, &now, &allocated);
    printf("{\"handshakes\": %u, \"other_peers\": %u, \"handshake_us\": %.2f, \"query_us\": %.2f, \"allocations\": %lu, \"one_mac_us\": %.3f}\n",
           rounds, peers, spent, query_us, allocated, mac_us(rounds));
    tr_endpoint_free(client.endpoint);
    tr_endpoint_free(server.endpoint);
    tr_token_release(client.token);
    tr_token_release(server.token);
    tr_engine_free(engine);
    return 0;
}
