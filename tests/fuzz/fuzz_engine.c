/* The engine as a whole: two pods, each client and server of the other, with tables of a few entries. The input is a program: what kernels
 * send, what the path does to it, what Python teaches, takes over and gives back. */
#include <stdlib.h>
#include <string.h>

#include "octets.h"
#include "packet.h"
#include "surplus.h"
#include "teach.h"

enum { PODS = 2, WIRE = 4, LARGEST = 1500 };

struct wire {
    uint32_t size;
    uint8_t data[LARGEST];
};

struct scene {
    const uint8_t *at;
    size_t left;
    struct tr_engine *engine;
    struct tr_endpoint *pods[PODS];
    struct tr_token *tokens[2 * PODS]; /* two identities each */
    int identity[PODS];
    uint32_t policy[PODS];
    struct tr_instant now;
    struct wire wire[WIRE]; /* what was seen last, the newest first */
    uint32_t owned[PODS];   /* hand-overs that were not returned */
};

static uint8_t next(struct scene *scene)
{
    if (!scene->left)
        return 0;
    scene->left--;
    return *scene->at++;
}

static void address_of(uint8_t address[16], int pod, bool v6)
{
    memset(address, 0, 16);
    if (v6)
        memcpy(address, (const uint8_t[]){0xfd, 0, 0, 1}, 4);
    else
        tr_map_v4(address, (const uint8_t[]){10, 1, 0, 0});
    address[15] = (uint8_t)(2 + pod);
}

static void remember(struct scene *scene, const uint8_t *data, uint32_t size)
{
    if (size > LARGEST)
        return;
    memmove(&scene->wire[1], &scene->wire[0], sizeof scene->wire - sizeof scene->wire[0]);
    scene->wire[0].size = size;
    memcpy(scene->wire[0].data, data, size);
}

/* A kernel's packet from one pod to the other: ports, numbers and flags from few choices, so that they meet. */
static void kernel_sends(struct scene *scene, int pod)
{
    static const uint8_t flags[] = {TR_SYN, TR_SYN | TR_ACK, TR_ACK, TR_ACK, TR_RST, TR_RST | TR_ACK, TR_FIN | TR_ACK, TR_ACK | TR_URG};
    uint8_t data[200] = {0}, what = next(scene), who = next(scene), numbers = next(scene);
    bool v6 = what & 0x80;
    uint32_t ip = v6 ? 40 : 20, options = (what >> 5 & 3) == 3 ? 12 : 0, payload = (who >> 4) * 3;
    uint32_t size = ip + 20 + options + payload;
    uint8_t source[16], destination[16], *tcp = data + ip;
    bool reply = who & 1;
    uint16_t client_port = (uint16_t)(1000 + (who >> 1 & 3)), server_port = 80;

    address_of(source, pod, v6);
    address_of(destination, 1 - pod, v6);
    if (v6) {
        data[0] = 0x60;
        tr_put16(data + 4, (uint16_t)(size - ip));
        data[6] = TR_TCP;
        data[7] = 64;
        memcpy(data + 8, source, 16);
        memcpy(data + 24, destination, 16);
    } else {
        data[0] = 0x45;
        tr_put16(data + 2, (uint16_t)size);
        data[8] = 64;
        data[9] = TR_TCP;
        memcpy(data + 12, source + 12, 4);
        memcpy(data + 16, destination + 12, 4);
    }
    tr_put16(tcp, reply ? server_port : client_port);
    tr_put16(tcp + 2, reply ? client_port : server_port);
    tr_put32(tcp + 4, (reply ? 5000u : 100u) + (numbers & 3));
    tr_put32(tcp + 8, (reply ? 100u : 5000u) + (numbers >> 2 & 3));
    tcp[12] = (uint8_t)((20 + options) / 4 << 4);
    tcp[13] = flags[what & 7];
    if (options)
        memcpy(tcp + 20, (const uint8_t[]){2, 4, 5, 180, 34, 2, 1, 1, 1, 1, 1, 1}, 12);
    tr_packet_complete_sum(data, size);
    remember(scene, data, size);
}

/* The same for UDP: its checksum there or not, and options of its own behind it or not. */
static void kernel_sends_datagram(struct scene *scene, int pod)
{
    uint8_t data[200] = {0}, what = next(scene), who = next(scene);
    bool v6 = what & 0x80, reply = who & 1;
    uint32_t ip = v6 ? 40 : 20, payload = who >> 4, surplus = (what & 3) == 3 ? 4 : 0, size = ip + 8 + payload + surplus;
    uint16_t client_port = (uint16_t)(1000 + (who >> 1 & 3)), server_port = 80;
    uint8_t source[16], destination[16], *udp = data + ip;

    address_of(source, pod, v6);
    address_of(destination, 1 - pod, v6);
    if (v6) {
        data[0] = 0x60;
        tr_put16(data + 4, (uint16_t)(size - ip));
        data[6] = TR_UDP;
        memcpy(data + 8, source, 16);
        memcpy(data + 24, destination, 16);
    } else {
        data[0] = 0x45;
        tr_put16(data + 2, (uint16_t)size);
        data[9] = TR_UDP;
        memcpy(data + 12, source + 12, 4);
        memcpy(data + 16, destination + 12, 4);
    }
    tr_put16(udp, reply ? server_port : client_port);
    tr_put16(udp + 2, reply ? client_port : server_port);
    tr_put16(udp + 4, (uint16_t)(8 + payload));
    memset(udp + 8, what, payload);
    if (what & 4)
        tr_packet_complete_sum(data, size);
    remember(scene, data, size);
}

/* Have the sum over a whole UDP packet be right, by the checksum of its surplus. */
static void mend_surplus(struct wire *wire)
{
    struct tr_view view;
    enum tr_reason reason;
    uint32_t octets, at;
    uint8_t *udp;

    if (!tr_parse_untrusted(&view, wire->data, wire->size, &reason) || view.protocol != TR_UDP || view.captured < view.length)
        return;
    octets = view.length - view.transport;
    udp = wire->data + view.transport;
    at = (tr_get16(udp + 4) + 1u) & ~1u;
    if (at < 8 || at + 2 > octets)
        return;
    tr_put16(udp + at, 0);
    tr_put16(udp + at, (uint16_t)~tr_sum_fold(tr_sum(tr_sum_pseudo_header(&view, octets), udp, octets)));
}

/* Change the newest packet on the wire; its sum is made right again or not. */
static void meddle(struct scene *scene)
{
    struct wire *wire = &scene->wire[0];
    uint8_t how = next(scene);
    uint32_t at = (uint32_t)(next(scene) << 2 | how >> 6), number = how & 3;

    if (!wire->size)
        return;
    for (uint32_t i = 0; i <= number; i++)
        wire->data[(at + i) % wire->size] ^= next(scene);
    if (how & 4)
        wire->size -= at % wire->size;
    if (how & 16)
        mend_surplus(wire);
    else if (how & 8)
        tr_packet_complete_sum(wire->data, wire->size);
}

/* As Python does with what nothing keeps there: it may be the engine's again, once. */
static int give_back(struct scene *scene, int pod, const uint8_t *octets, uint32_t size)
{
    struct tr_endpoint *endpoint = scene->pods[pod];
    struct tr_token *const *own = &scene->tokens[2 * pod], *const *others = &scene->tokens[2 * (1 - pod)];
    struct tr_token *local[] = {NULL, own[0], own[1]};
    uint8_t *exact = malloc(size + !size);
    int taken = 0;

    if (!exact)
        return 0;
    memcpy(exact, octets, size);
    for (int i = 0; i < 6; i++)
        taken += tr_take_back(endpoint, exact, size, local[i / 2], others[i % 2], scene->now.mono_ns);
    if (taken > 1 || (taken && !tr_live_tuples(endpoint, &(struct tr_tuple){0}, 1)))
        abort();
    free(exact);
    return taken;
}

static void meet(struct scene *scene, int pod, enum tr_hook hook)
{
    uint8_t how = next(scene);
    const struct wire *wire = &scene->wire[how & (WIRE - 1)];
    static uint8_t out[TR_ROOM + LARGEST], handover[TR_HANDOVER];
    struct tr_endpoint *endpoint = scene->pods[pod];
    struct tr_packet packet;
    struct tr_result result;
    struct tr_counters before, after;
    uint8_t *data = malloc(wire->size + !wire->size); /* of exactly this size */

    if (!data)
        return;
    memcpy(data, wire->data, wire->size);
    packet = (struct tr_packet){
        .data = data, .captured = wire->size, .hook = hook, .more = how & 4, .unsummed = how & 8, .out = out,
        .room = how & 16 ? sizeof out : next(scene) * 4u,
    };
    tr_engine_counters(endpoint, &before);
    tr_engine_receive(endpoint, &packet, &scene->now, &result);
    tr_engine_counters(endpoint, &after);
    if (result.length > packet.room || (result.length && (result.verdict == TR_DROP || result.verdict == TR_PARK)))
        abort();
    if (result.verdict == TR_ACCEPT && packet.more)
        abort();
    if (result.verdict == TR_DROP && after.drops[result.reason] != before.drops[result.reason] + 1)
        abort();
    if (result.verdict == TR_PARK) {
        before.parked[result.park] += result.park != TR_PARK_ENTROPY;
        if (memcmp(&before, &after, sizeof before) != 0)
            abort(); /* parking has changed something */
        if (how & 32 && result.park != TR_PARK_ENTROPY) {
            uint32_t size = tr_engine_hand_over(endpoint, &packet, handover);

            if (size > TR_HANDOVER)
                abort();
            if (give_back(scene, pod, handover, size) && size)
                abort(); /* it is on its way */
            tr_engine_receive(endpoint, &packet, &scene->now, &result);
            if (result.verdict != TR_PARK && result.verdict != TR_DROP)
                abort(); /* it is Python's until it is returned */
            if (how & 64) {
                tr_engine_returned(endpoint, data, wire->size, hook);
                give_back(scene, pod, handover, size);
            }
        }
    }
    if (result.length)
        remember(scene, out, result.length);
    free(data);
}

static void teach(struct scene *scene, int pod)
{
    uint8_t how = next(scene);
    struct tr_lesson lesson = {.direction = how & 1, .reason = how >> 1 & 3, .protocol = TR_TCP, .port = 80, .policy = scene->policy[pod], .key = "pair key"};
    const struct tr_token *own = scene->tokens[2 * pod + scene->identity[pod]];
    struct tr_token *peer = scene->tokens[2 * (1 - pod) + (how >> 3 & 1)];
    struct tr_end end = {.port = 80};

    address_of(lesson.address, 1 - pod, how & 0x80);
    address_of(end.address, 1 - pod, how & 0x80);
    tr_teach(scene->pods[pod], peer, own, &lesson);
    if (how & 0x40)
        tr_forget_target(scene->pods[pod], &end);
    else
        tr_teach_target(scene->pods[pod], &end);
}

/* Teach what UDP flows may go on from, or forget it. Both pods know one ticket by the same key; their counters may begin anew. */
static void teach_exchange(struct scene *scene, int pod)
{
    static const uint8_t name[TR_NONCE_SIZE] = "the only ticket";
    uint8_t how = next(scene);
    bool v6 = how & 0x80, egress = how & 1;
    struct tr_lesson lesson = {.direction = egress, .protocol = TR_UDP, .port = 80, .policy = scene->policy[pod], .anybody = how & 2, .key = "pair key"};
    struct tr_exchange exchange = {.local = scene->tokens[2 * pod + scene->identity[pod]],
                                   .peer = scene->tokens[2 * (1 - pod) + (how >> 3 & 1)],
                                   .key = "pair key", .server = {.port = 80}, .not_before = 1, .not_after = 1e9 + 1e6};
    struct tr_session *session = tr_session_new(1);
    struct tr_end dialled = {.port = 80};

    memcpy(exchange.ticket, name, sizeof name);
    address_of(lesson.address, 1 - pod, v6);
    address_of(dialled.address, 1 - pod, v6);
    address_of(exchange.server.address, egress ? 1 - pod : pod, v6);
    address_of(exchange.client, egress ? pod : 1 - pod, v6);
    if (!session)
        abort();
    tr_session_touch(session, scene->now.mono_ns);
    if (how & 0x40)
        egress ? tr_forget_warm(scene->pods[pod], &dialled) : tr_forget_ticket(scene->pods[pod], name);
    else if (egress)
        tr_teach_warm(scene->pods[pod], &dialled, session, &exchange, scene->policy[pod], how & 4);
    else
        tr_teach_ticket(scene->pods[pod], session, &exchange);
    if (!(how & 0x20))
        tr_teach(scene->pods[pod], exchange.peer, exchange.local, &lesson);
    tr_session_release(session);
}

static void take(struct scene *scene, int pod)
{
    static uint8_t out[TR_HANDOVER];
    struct tr_cursor cursor = {0};
    struct tr_event event;
    struct tr_tuple tuples[4];
    uint8_t how = next(scene);
    uint32_t count;

    while (how & 1 && tr_take_event(scene->pods[pod], &event))
        tr_token_release(event.peer);
    count = tr_live_tuples(scene->pods[pod], tuples, 4);
    for (uint32_t i = 0; how & 2 && i < count; i++)
        if (!tr_live_forget(scene->pods[pod], &tuples[i]))
            abort();
    while (tr_export(scene->pods[pod], &cursor, how & 4, out))
        ;
    if (how & 4 && (tr_live_tuples(scene->pods[pod], tuples, 1) || tr_engine_next_deadline(scene->pods[pod]) != UINT64_MAX))
        abort(); /* everything was taken */
}

static void step(struct scene *scene)
{
    uint8_t what = next(scene);
    int pod = what & 1;
    static const uint8_t nonces[4 * TR_NONCE_SIZE] = {1, 2, 3};

    switch (what >> 1 & 15) {
    case 0: case 1: case 2:
        what & 0x20 ? kernel_sends_datagram(scene, pod) : kernel_sends(scene, pod);
        break;
    case 3: case 4: case 5:
        meet(scene, pod, TR_NETWORK);
        break;
    case 6: case 7: case 8:
        meet(scene, pod, TR_APPLICATION);
        break;
    case 9:
        meddle(scene);
        break;
    case 10:
        what & 0x20 ? teach_exchange(scene, pod) : teach(scene, pod);
        break;
    case 11:
        tr_engine_add_entropy(scene->pods[pod], nonces, what >> 5 & 3);
        break;
    case 12:
        scene->now.mono_ns += (uint64_t)next(scene) * 1000000000;
        scene->now.wall_s += what & 0x80 ? 1e6 : 1;
        tr_engine_expire(scene->pods[pod], scene->now.mono_ns);
        break;
    case 13:
        scene->policy[pod] = tr_teach_policy(scene->pods[pod]);
        break;
    case 14:
        scene->identity[pod] = what >> 5 & 1;
        tr_teach_identity(scene->pods[pod], what & 0x80 ? NULL : scene->tokens[2 * pod + scene->identity[pod]]);
        break;
    default:
        take(scene, pod);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct tr_sizes sizes = {4, 4, 2, 4, 8, 4, 4};
    static const uint8_t seed[16] = {7};
    struct scene scene = {.at = data, .left = size, .now = {1000000000, 1e9}};

    scene.engine = tr_engine_new(seed);
    for (int i = 0; i < 2 * PODS; i++) {
        uint8_t id[TR_ID_SIZE], assertion[40];

        memset(id, i, sizeof id);
        memset(assertion, i, sizeof assertion);
        scene.tokens[i] = tr_token_new((uint32_t)i + 1, id, assertion, sizeof assertion, 1e9 + 1e6 * (i + 1));
    }
    for (int i = 0; i < PODS; i++) {
        static const uint8_t nonces[8 * TR_NONCE_SIZE] = {9};

        scene.pods[i] = tr_endpoint_new(scene.engine, &sizes);
        if (!scene.pods[i] || !tr_listen(scene.pods[i], true))
            abort();
        scene.policy[i] = 1;
        tr_teach_identity(scene.pods[i], scene.tokens[2 * i]);
        tr_engine_add_entropy(scene.pods[i], nonces, 8);
    }
    while (scene.left)
        step(&scene);
    for (int i = 0; i < PODS; i++)
        tr_endpoint_free(scene.pods[i]);
    for (int i = 0; i < 2 * PODS; i++) {
        if (tr_token_references(scene.tokens[i]) != 1)
            abort(); /* somebody still refers to it */
        tr_token_release(scene.tokens[i]);
    }
    tr_engine_free(scene.engine);
    return 0;
}
