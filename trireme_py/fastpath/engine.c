/* Endpoints, which part of the engine a packet belongs to, and what ends a turn (the warm part of datapath.py). */
#include "engine.h"

#include <stdlib.h>

#include "octets.h"
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
           tr_table_init(&one->targets, sizes->verdicts, sizeof(struct tr_target), sizeof(struct tr_end), TR_FOREVER);
    if (made)
        return one;
    tr_endpoint_free(one);
    return NULL;
}

void tr_endpoint_free(struct tr_endpoint *endpoint)
{
    struct tr_table *tables[] = {&endpoint->clients, &endpoint->servers, &endpoint->syns, &endpoint->live,
                                 &endpoint->owned, &endpoint->peers, &endpoint->verdicts, &endpoint->targets};
    struct tr_event event;

    while (endpoint->clients.count)
        tr_forget_client(endpoint, tr_table_oldest(&endpoint->clients));
    while (endpoint->servers.count)
        tr_forget_server(endpoint, tr_table_oldest(&endpoint->servers));
    while (endpoint->live.count)
        tr_forget_live(endpoint, tr_table_oldest(&endpoint->live));
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

/* -- what the two ends share -- */

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
    tr_table_remove(&endpoint->live, live);
}

void tr_remember_live(struct tr_turn *turn, const struct tr_tuple *tuple, const struct tr_live *like)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    uint64_t hash = tr_hash(endpoint, tuple, sizeof *tuple);
    struct tr_token *peer = tr_token_keep(like->peer); /* first: it may be the old entry's */
    struct tr_live *live = tr_table_find(&endpoint->live, hash, tuple);

    if (live)
        tr_forget_live(endpoint, live);
    else if (tr_table_full(&endpoint->live))
        tr_forget_live(endpoint, tr_table_oldest(&endpoint->live));
    live = tr_table_add(&endpoint->live, hash, tuple, turn->now->mono_ns);
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

/* -- how a turn ends -- */

void tr_pass(struct tr_turn *turn, enum tr_verdict verdict, uint32_t length)
{
    turn->result->verdict = verdict;
    turn->result->length = length;
}

/* The mark goes on the last packet that waits, so that none overtakes another. */
void tr_accept(struct tr_turn *turn, uint32_t length)
{
    tr_pass(turn, turn->packet->more ? TR_PASS : TR_ACCEPT, length);
}

void tr_drop(struct tr_turn *turn, enum tr_reason reason)
{
    turn->result->verdict = TR_DROP;
    turn->result->reason = reason;
    turn->endpoint->counters.drops[reason]++;
}

void tr_park(struct tr_turn *turn, enum tr_park park)
{
    turn->result->verdict = TR_PARK;
    turn->result->park = park;
    if (park != TR_PARK_ENTROPY)
        turn->endpoint->counters.parked[park]++;
}

/* -- packets -- */

/* The SYN that a packet begins, answers or resets, where those are matched by it and not by the tuple. */
static bool names_syn(struct tr_tuple *key, const struct tr_turn *turn)
{
    const struct tr_view *view = &turn->view;
    bool leaving = turn->packet->hook == TR_APPLICATION;
    uint8_t handshake = view->flags & (TR_SYN | TR_ACK);

    if (leaving && (handshake == (TR_SYN | TR_ACK) || view->flags & TR_RST))
        tr_syn_key(key, turn->tuple.other, turn->tuple.other_port, view->acknowledgement - 1);
    else if (!leaving && handshake == TR_SYN)
        tr_syn_key(key, turn->tuple.other, turn->tuple.other_port, view->sequence);
    else
        return false;
    return true;
}

/* Parse, and name the connection: of TCP its own, of an ICMP error that of the packet it quotes. */
static bool identify_untrusted(struct tr_turn *turn, bool *tcp, enum tr_reason *reason)
{
    bool leaving = turn->packet->hook == TR_APPLICATION;
    struct tr_view quoted;

    *tcp = false;
    if (!tr_parse_untrusted(&turn->view, turn->packet->data, turn->packet->captured, reason))
        return false;
    if (turn->view.protocol == TR_TCP) {
        *tcp = true;
        tr_tuple_of(&turn->tuple, &turn->view, leaving);
    } else if (tr_parse_quoted_untrusted(&quoted, &turn->view) && quoted.protocol == TR_TCP) {
        tr_tuple_of(&turn->tuple, &quoted, !leaving);
    } else {
        memset(&turn->tuple, 0, sizeof turn->tuple);
        return true;
    }
    turn->hash = tr_hash(turn->endpoint, &turn->tuple, sizeof turn->tuple);
    return true;
}

/* The class of a packet that is Python's. What somebody outside can send at will must not pass for more than it is: that a packet of a
 * connection is on its way to Python already does not make the next one worth more. */
static enum tr_park class_of(const struct tr_turn *turn, const struct tr_owned *owned)
{
    const struct tr_view *view = &turn->view;
    uint8_t handshake = view->flags & (TR_SYN | TR_ACK);
    struct tr_message_view message;

    if (turn->packet->hook == TR_APPLICATION)
        return TR_PARK_OWNED;
    if (handshake != TR_SYN)
        return owned && (owned->references || owned->known) ? TR_PARK_OWNED : TR_PARK_PLAIN;
    if (!tr_is_message(tr_payload(view), tr_payload_size(view)))
        return TR_PARK_PLAIN;
    if (tr_read_message_untrusted(&message, TR_MESSAGE_SYN, tr_payload(view), tr_payload_size(view)) &&
        tr_find_peer(turn, &message, TR_INGRESS))
        return TR_PARK_KNOWN;
    return TR_PARK_STRANGER;
}

/* A segment of an accepted connection: the mark is on its way, or policy has changed. */
static void judge_again(struct tr_turn *turn)
{
    if (turn->live->policy == turn->endpoint->policy)
        return tr_accept(turn, 0);
    tr_park(turn, TR_PARK_OWNED);
}

static void application_packet(struct tr_turn *turn)
{
    uint8_t flags = turn->view.flags;
    struct tr_tuple key;

    if (flags & TR_SYN)
        return flags & TR_ACK ? tr_server_syn_ack(turn) : tr_client_syn(turn);
    if (turn->client)
        return tr_client_segment(turn);
    if (turn->server && turn->server->state == TR_SYN_ACK_CREATED)
        return tr_park(turn, TR_PARK_OWNED);
    if (turn->live)
        return judge_again(turn);
    if (flags & TR_RST && names_syn(&key, turn) && tr_find_syn(turn->endpoint, &key))
        return tr_pass(turn, TR_PASS, 0); /* a closed port refuses a SYN that policy let in */
    tr_park(turn, TR_PARK_OWNED);
}

static void network_packet(struct tr_turn *turn)
{
    const struct tr_view *view = &turn->view;

    if (view->flags & TR_SYN)
        return view->flags & TR_ACK ? tr_client_syn_ack(turn) : tr_server_syn(turn);
    if (turn->client && turn->client->state != TR_ACK_CREATED)
        return tr_park(turn, TR_PARK_OWNED);
    if (turn->server && tr_is_message(tr_payload(view), tr_payload_size(view)) &&
        view->sequence == turn->server->isn + 1 - TR_PROOF)
        return tr_server_proof(turn);
    if (turn->server && turn->server->state == TR_SYN_ACK_CREATED)
        return tr_park(turn, TR_PARK_KNOWN);
    if (turn->live)
        return judge_again(turn);
    tr_park(turn, turn->client ? TR_PARK_OWNED : TR_PARK_PLAIN);
}

void tr_engine_receive(struct tr_endpoint *endpoint, const struct tr_packet *packet, const struct tr_instant *now,
                       struct tr_result *result)
{
    struct tr_turn turn = {.endpoint = endpoint, .packet = packet, .now = now, .result = result};
    enum tr_park odd = packet->hook == TR_APPLICATION ? TR_PARK_OWNED : TR_PARK_PLAIN;
    const struct tr_owned *owned;
    enum tr_reason reason;
    struct tr_tuple key;
    bool tcp;

    *result = (struct tr_result){0};
    if (!identify_untrusted(&turn, &tcp, &reason))
        return tr_drop(&turn, reason);
    if (!tcp)
        return tr_park(&turn, odd);
    if (turn.view.flags & TR_SYN && turn.view.flags & (TR_RST | TR_FIN))
        return tr_drop(&turn, TR_MALFORMED_PACKET);
    owned = tr_find_owned(endpoint, &turn.tuple, turn.hash);
    if (!owned && endpoint->owned.count && names_syn(&key, &turn))
        owned = tr_find_owned(endpoint, &key, tr_hash(endpoint, &key, sizeof key));
    if (owned)
        return tr_park(&turn, class_of(&turn, owned));
    /* In tables and messages these stand for IPv4; on the wire nobody honest has them. */
    if (turn.view.version == 6 && (tr_is_v4_mapped(turn.view.source) || tr_is_v4_mapped(turn.view.destination)))
        return tr_park(&turn, odd);
    turn.client = tr_table_find(&endpoint->clients, turn.hash, &turn.tuple);
    turn.server = tr_table_find(&endpoint->servers, turn.hash, &turn.tuple);
    turn.live = tr_table_find(&endpoint->live, turn.hash, &turn.tuple);
    if (packet->hook == TR_APPLICATION)
        application_packet(&turn);
    else
        network_packet(&turn);
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
    const struct tr_link *client = tr_table_oldest(&endpoint->clients), *server = tr_table_oldest(&endpoint->servers);
    uint64_t deadline = client ? client->deadline : UINT64_MAX;

    return server && server->deadline < deadline ? server->deadline : deadline;
}

void tr_engine_expire(struct tr_endpoint *endpoint, uint64_t mono_ns)
{
    struct tr_link *oldest;

    while ((oldest = tr_table_oldest(&endpoint->clients)) && oldest->deadline <= mono_ns)
        tr_forget_client(endpoint, (struct tr_client *)oldest);
    while ((oldest = tr_table_oldest(&endpoint->servers)) && oldest->deadline <= mono_ns)
        tr_forget_server(endpoint, (struct tr_server *)oldest);
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
    counters->live = endpoint->live.count;
    counters->peers = endpoint->peers.count;
    counters->verdicts = endpoint->verdicts.count;
    counters->owned = endpoint->owned.count;
}

void tr_engine_set_translate(struct tr_endpoint *endpoint, tr_translate *translate, void *context)
{
    endpoint->translate = translate;
    endpoint->translate_context = context;
}

/* -- the way to Python -- */

/* The tuple of a packet's connection, and the SYN it names; whether it has them. For ICMP errors as for TCP. */
static bool connection_untrusted(struct tr_turn *turn, bool *has_syn, struct tr_tuple *syn)
{
    enum tr_reason reason;
    bool tcp;

    *has_syn = false;
    if (!identify_untrusted(turn, &tcp, &reason) || (!turn->tuple.own_port && !turn->tuple.other_port && !tcp))
        return false;
    *has_syn = tcp && names_syn(syn, turn);
    return true;
}

uint32_t tr_engine_hand_over(struct tr_endpoint *endpoint, const struct tr_packet *packet, uint8_t *out)
{
    struct tr_turn turn = {.endpoint = endpoint, .packet = packet};
    struct tr_tuple key, other;
    struct tr_owned *owned;
    struct tr_syn *syn;
    uint32_t length;
    bool has_syn, known;

    if (!connection_untrusted(&turn, &has_syn, &key))
        return 0;
    length = tr_hand_over_tuple(endpoint, &turn.tuple, out, &known);
    owned = tr_put_owned(endpoint, &turn.tuple);
    owned->pending++;
    owned->known |= known;
    if (has_syn) {
        syn = tr_find_syn(endpoint, &key);
        if (syn) {
            other = syn->server->tuple;
            length += tr_hand_over_tuple(endpoint, &other, out + length, &known);
        }
        tr_put_owned(endpoint, &key)->pending++;
    }
    return length;
}

void tr_engine_returned(struct tr_endpoint *endpoint, const uint8_t *data, uint32_t captured, enum tr_hook hook)
{
    const struct tr_packet packet = {.data = data, .captured = captured, .hook = hook};
    struct tr_turn turn = {.endpoint = endpoint, .packet = &packet};
    struct tr_tuple key;
    bool has_syn;

    if (!connection_untrusted(&turn, &has_syn, &key))
        return;
    tr_put_back(endpoint, &turn.tuple);
    if (has_syn)
        tr_put_back(endpoint, &key);
}
