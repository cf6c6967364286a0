/* An endpoint: its life, what it remembers, its upkeep. */
#include <stdlib.h>

#include "engine.h"
#include "siphash.h"
#include "state.h"

/* -- life -- */

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
    struct tr_endpoint *one = calloc(1, sizeof *one);
    bool made;

    if (!one)
        return NULL;
    one->engine = engine;
    one->policy = 1;
    pthread_mutex_init(&one->lock, NULL);
    one->mac = tr_mac_new();
    made = one->mac && tr_table_init(&one->clients, sizes->half_open, sizeof(struct tr_client), sizeof(struct tr_tuple), TR_HALF_OPEN_NS) &&
           tr_table_init(&one->servers, sizes->half_open, sizeof(struct tr_server), sizeof(struct tr_tuple), TR_HALF_OPEN_NS) &&
           tr_table_init(&one->syns, sizes->half_open, sizeof(struct tr_syn), sizeof(struct tr_tuple), TR_FOREVER) &&
           tr_table_init(&one->live, sizes->live, sizeof(struct tr_live), sizeof(struct tr_tuple), TR_FOREVER) &&
           tr_table_init(&one->owned, sizes->owned, sizeof(struct tr_owned), sizeof(struct tr_tuple), TR_FOREVER) &&
           tr_table_init(&one->peers, sizes->peers, sizeof(struct tr_peer), TR_ID_SIZE, TR_FOREVER) &&
           tr_table_init(&one->verdicts, sizes->verdicts, sizeof(struct tr_verdict_entry), sizeof(struct tr_verdict_key), TR_FOREVER) &&
           tr_table_init(&one->targets, sizes->verdicts, sizeof(struct tr_target), sizeof(struct tr_end), TR_FOREVER) &&
           tr_table_init(&one->datagram_clients, sizes->datagrams, sizeof(struct tr_datagram_client), sizeof(struct tr_tuple),
                         TR_FLOW_MS * TR_MS) &&
           tr_table_init(&one->datagram_servers, sizes->datagrams, sizeof(struct tr_datagram_server), sizeof(struct tr_tuple),
                         TR_FLOW_MS * TR_MS) &&
           tr_table_init(&one->live_datagrams, sizes->live_datagrams, sizeof(struct tr_live), sizeof(struct tr_tuple), TR_FOREVER) &&
           tr_table_init(&one->warm, sizes->datagrams, sizeof(struct tr_warm), sizeof(struct tr_end), TR_FOREVER) &&
           tr_table_init(&one->tickets, sizes->datagrams, sizeof(struct tr_ticket), TR_NONCE_SIZE, TR_FOREVER);
    if (made)
        return one;
    tr_endpoint_free(one);
    return NULL;
}

void tr_endpoint_free(struct tr_endpoint *endpoint)
{
    struct tr_table *tables[] = {&endpoint->clients, &endpoint->servers,  &endpoint->syns,    &endpoint->live,
                                 &endpoint->owned,   &endpoint->peers,    &endpoint->verdicts, &endpoint->targets,
                                 &endpoint->datagram_clients, &endpoint->datagram_servers, &endpoint->live_datagrams,
                                 &endpoint->warm,    &endpoint->tickets};
    struct tr_event event;

    while (endpoint->clients.count)
        tr_forget_client(endpoint, tr_table_oldest(&endpoint->clients));
    while (endpoint->servers.count)
        tr_forget_server(endpoint, tr_table_oldest(&endpoint->servers));
    while (endpoint->live.count)
        tr_forget_live(endpoint, tr_table_oldest(&endpoint->live));
    while (endpoint->datagram_clients.count)
        tr_forget_datagram_client(endpoint, tr_table_oldest(&endpoint->datagram_clients));
    while (endpoint->datagram_servers.count)
        tr_forget_datagram_server(endpoint, tr_table_oldest(&endpoint->datagram_servers));
    while (endpoint->live_datagrams.count)
        tr_forget_live(endpoint, tr_table_oldest(&endpoint->live_datagrams));
    while (endpoint->warm.count)
        tr_forget_warm(endpoint, &((struct tr_warm *)tr_table_oldest(&endpoint->warm))->dialled);
    while (endpoint->tickets.count)
        tr_forget_ticket(endpoint, ((struct tr_ticket *)tr_table_oldest(&endpoint->tickets))->ticket);
    while (tr_take_event(endpoint, &event))
        tr_token_release(event.peer);
    tr_teach_identity(endpoint, NULL);
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        tr_table_free(tables[i]);
    tr_mac_free(endpoint->mac);
    free(endpoint->events);
    pthread_mutex_destroy(&endpoint->lock);
    explicit_bzero(endpoint, sizeof *endpoint);
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

/* -- what is remembered -- */

uint64_t tr_hash(const struct tr_endpoint *endpoint, const void *key, size_t size)
{
    return tr_siphash(endpoint->engine->seed, key, size);
}

struct tr_owned *tr_find_owned(const struct tr_endpoint *endpoint, const struct tr_tuple *tuple, uint64_t hash)
{
    return endpoint->owned.count ? tr_table_find(&endpoint->owned, hash, tuple) : NULL;
}

void tr_syn_key(struct tr_tuple *key, const uint8_t peer[16], uint16_t port, uint32_t isn)
{
    memset(key, 0, sizeof *key);
    memcpy(key->other, peer, 16);
    key->other_port = port;
    key->isn_or_zero = isn;
    key->protocol = TR_TCP;
}

struct tr_syn *tr_find_syn(const struct tr_endpoint *endpoint, const struct tr_tuple *key)
{
    return tr_table_find(&endpoint->syns, tr_hash(endpoint, key, sizeof *key), key);
}

bool tr_copy_headers(struct tr_headers *headers, const struct tr_view *view)
{
    if (view->body > TR_HEADERS)
        return false;
    headers->length = (uint8_t)view->body;
    memcpy(headers->data, view->data, view->body);
    return true;
}

void tr_forget_client(struct tr_endpoint *endpoint, struct tr_client *flow)
{
    endpoint->counters.proving -= flow->state == TR_SYN_ACK_CONSUMED;
    tr_token_release(flow->local);
    if (flow->peer)
        tr_token_release(flow->peer);
    tr_table_remove(&endpoint->clients, flow);
}

void tr_forget_server(struct tr_endpoint *endpoint, struct tr_server *flow)
{
    struct tr_tuple key;
    struct tr_syn *syn;

    tr_syn_key(&key, flow->tuple.other, flow->tuple.other_port, flow->isn);
    syn = tr_find_syn(endpoint, &key);
    if (syn)
        tr_table_remove(&endpoint->syns, syn);
    tr_token_release(flow->local);
    tr_token_release(flow->peer);
    tr_table_remove(&endpoint->servers, flow);
}

void tr_forget_live(struct tr_endpoint *endpoint, struct tr_live *live)
{
    tr_token_release(live->peer);
    tr_table_remove(tr_live_table(endpoint, &live->tuple), live);
}

void tr_forget_datagram_client(struct tr_endpoint *endpoint, struct tr_datagram_client *flow)
{
    tr_session_release(flow->session);
    tr_table_remove(&endpoint->datagram_clients, flow);
}

void tr_forget_datagram_server(struct tr_endpoint *endpoint, struct tr_datagram_server *flow)
{
    tr_session_release(flow->session);
    tr_table_remove(&endpoint->datagram_servers, flow);
}

/* UDP's ports cost nothing and would turn connections out of a common table. */
struct tr_table *tr_live_table(struct tr_endpoint *endpoint, const struct tr_tuple *tuple)
{
    return tuple->protocol == TR_UDP ? &endpoint->live_datagrams : &endpoint->live;
}

void tr_remember_live(struct tr_turn *turn, const struct tr_tuple *tuple, const struct tr_live *like)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    uint64_t hash = tr_hash(endpoint, tuple, sizeof *tuple);
    struct tr_token *peer = tr_token_keep(like->peer); /* first: it may be the old entry's */
    struct tr_table *table = tr_live_table(endpoint, tuple);
    struct tr_live *live = tr_table_find(table, hash, tuple);

    if (live)
        tr_forget_live(endpoint, live);
    else if (tr_table_full(table))
        tr_forget_live(endpoint, tr_table_oldest(table));
    live = tr_table_add(table, hash, tuple, turn->now->mono_ns);
    live->direction = like->direction;
    live->port = like->port;
    live->isn = like->isn;
    live->server_isn = like->server_isn;
    live->policy = like->policy;
    live->peer = peer;
    memcpy(live->address, like->address, 16);
}

void tr_announce(struct tr_turn *turn, const struct tr_live *live, uint32_t decision, uint8_t reason)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    struct tr_event *event, oldest;

    endpoint->counters.accepted[live->direction][reason]++;
    if (!endpoint->listening) {
        endpoint->counters.unrecorded[live->direction][reason]++;
        return;
    }
    if (endpoint->events_waiting == TR_EVENTS && tr_take_event(endpoint, &oldest)) {
        endpoint->counters.unrecorded[oldest.direction][oldest.reason]++;
        tr_token_release(oldest.peer);
    }
    event = &endpoint->events[(endpoint->first_event + endpoint->events_waiting++) % TR_EVENTS];
    *event = (struct tr_event){
        .tuple = turn->tuple,
        .peer = tr_token_keep(live->peer),
        .wall_s = turn->now->wall_s,
        .decision = decision,
        .token = live->peer->number,
        .direction = live->direction,
        .reason = reason,
        .port = live->port,
    };
    memcpy(event->address, live->address, 16);
}

/* -- upkeep -- */

uint32_t tr_engine_entropy_room(const struct tr_endpoint *endpoint)
{
    return TR_NONCES - endpoint->nonces;
}

void tr_engine_add_entropy(struct tr_endpoint *endpoint, const uint8_t *octets, uint32_t nonces)
{
    while (nonces-- && endpoint->nonces < TR_NONCES) {
        memcpy(endpoint->pool[endpoint->nonces++], octets, TR_NONCE_SIZE);
        octets += TR_NONCE_SIZE;
    }
}

uint64_t tr_engine_next_deadline(const struct tr_endpoint *endpoint)
{
    const struct tr_table *tables[] = {&endpoint->clients, &endpoint->servers, &endpoint->datagram_clients, &endpoint->datagram_servers};
    uint64_t deadline = UINT64_MAX;

    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        const struct tr_link *oldest = tr_table_oldest(tables[i]);

        if (oldest && oldest->deadline < deadline)
            deadline = oldest->deadline;
    }
    return deadline;
}

void tr_engine_expire(struct tr_endpoint *endpoint, uint64_t mono_ns)
{
    struct tr_link *oldest;

    while ((oldest = tr_table_oldest(&endpoint->clients)) && oldest->deadline <= mono_ns)
        tr_forget_client(endpoint, (struct tr_client *)oldest);
    while ((oldest = tr_table_oldest(&endpoint->servers)) && oldest->deadline <= mono_ns)
        tr_forget_server(endpoint, (struct tr_server *)oldest);
    while ((oldest = tr_table_oldest(&endpoint->datagram_clients)) && oldest->deadline <= mono_ns)
        tr_forget_datagram_client(endpoint, (struct tr_datagram_client *)oldest);
    while ((oldest = tr_table_oldest(&endpoint->datagram_servers)) && oldest->deadline <= mono_ns)
        tr_forget_datagram_server(endpoint, (struct tr_datagram_server *)oldest);
}

uint32_t tr_engine_events_waiting(const struct tr_endpoint *endpoint)
{
    return endpoint->events_waiting;
}

void tr_engine_count(struct tr_endpoint *endpoint, enum tr_reason reason, uint64_t packets)
{
    endpoint->counters.drops[reason] += packets;
}

void tr_engine_counters(const struct tr_endpoint *endpoint, struct tr_counters *counters)
{
    *counters = endpoint->counters;
    counters->clients = endpoint->clients.count;
    counters->servers = endpoint->servers.count;
    counters->live = endpoint->live.count + endpoint->live_datagrams.count;
    counters->peers = endpoint->peers.count;
    counters->verdicts = endpoint->verdicts.count;
    counters->owned = endpoint->owned.count;
}

void tr_engine_set_translate(struct tr_endpoint *endpoint, tr_translate *translate, void *context)
{
    endpoint->translate = translate;
    endpoint->translate_context = context;
}
