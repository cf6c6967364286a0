/* What Python teaches the engine: who is known, by which key, and what policy has said. */
#include "teach.h"

#include <stdlib.h>

#include "state.h"

/* -- tokens -- */

struct tr_token *tr_token_new(uint32_t number, const uint8_t id[TR_ID_SIZE], const uint8_t *assertion, uint32_t size, double not_after)
{
    struct tr_token *token = size <= TR_MAX_ASSERTION ? calloc(1, sizeof *token + size) : NULL;

    if (!token)
        return NULL;
    atomic_init(&token->references, 1);
    token->number = number;
    token->size = size;
    token->not_after = not_after;
    memcpy(token->id, id, TR_ID_SIZE);
    memcpy(token->assertion, assertion, size);
    return token;
}

struct tr_token *tr_token_keep(struct tr_token *token)
{
    atomic_fetch_add_explicit(&token->references, 1, memory_order_relaxed);
    return token;
}

void tr_token_release(struct tr_token *token)
{
    if (atomic_fetch_sub_explicit(&token->references, 1, memory_order_acq_rel) == 1)
        free(token);
}

uint32_t tr_token_references(const struct tr_token *token)
{
    return atomic_load_explicit(&((struct tr_token *)(uintptr_t)token)->references, memory_order_relaxed);
}

/* -- identities, peers, verdicts -- */

static void clear(struct tr_table *table)
{
    while (table->count)
        tr_table_remove(table, tr_table_oldest(table));
}

static void forget_peer(struct tr_endpoint *endpoint, struct tr_peer *peer)
{
    tr_token_release(peer->token);
    tr_table_remove(&endpoint->peers, peer);
}

uint32_t tr_teach_policy(struct tr_endpoint *endpoint)
{
    clear(&endpoint->verdicts);
    clear(&endpoint->targets);
    return ++endpoint->policy;
}

void tr_teach_identity(struct tr_endpoint *endpoint, struct tr_token *or_none)
{
    if (or_none)
        tr_token_keep(or_none);
    if (endpoint->identity)
        tr_token_release(endpoint->identity);
    endpoint->identity = or_none;
    while (endpoint->peers.count)
        forget_peer(endpoint, tr_table_oldest(&endpoint->peers));
}

struct tr_peer *tr_peer_of(const struct tr_endpoint *endpoint, const uint8_t id[TR_ID_SIZE])
{
    return tr_table_find(&endpoint->peers, tr_hash(endpoint, id, TR_ID_SIZE), id);
}

static void teach_peer(struct tr_endpoint *endpoint, struct tr_token *token, int direction, const uint8_t key[TR_KEY_SIZE])
{
    struct tr_peer *peer = tr_peer_of(endpoint, token->id);

    if (peer && peer->token != token) {
        forget_peer(endpoint, peer);
        peer = NULL;
    }
    if (!peer) {
        if (tr_table_full(&endpoint->peers))
            forget_peer(endpoint, tr_table_oldest(&endpoint->peers));
        peer = tr_table_add(&endpoint->peers, tr_hash(endpoint, token->id, TR_ID_SIZE), token->id, 0);
        peer->token = tr_token_keep(token);
    }
    peer->known[direction] = true;
    memcpy(peer->keys[direction], key, TR_KEY_SIZE);
}

static void verdict_key(struct tr_verdict_key *key, int direction, uint8_t protocol, const struct tr_token *token, const uint8_t address[16],
                        uint16_t port)
{
    *key = (struct tr_verdict_key){.token = token->number, .port = port, .direction = (uint8_t)direction, .protocol = protocol};
    memcpy(key->address, address, 16);
}

bool tr_teach(struct tr_endpoint *endpoint, struct tr_token *peer, const struct tr_token *local, const struct tr_lesson *lesson)
{
    struct tr_verdict_entry *entry;
    struct tr_verdict_key key;
    uint64_t hash;

    if (lesson->policy != endpoint->policy || local != endpoint->identity || lesson->direction > TR_EGRESS || lesson->reason >= TR_VERDICT_REASONS)
        return false;
    teach_peer(endpoint, peer, lesson->direction, lesson->key);
    verdict_key(&key, lesson->direction, lesson->protocol, peer, lesson->address, lesson->port);
    hash = tr_hash(endpoint, &key, sizeof key);
    entry = tr_table_find(&endpoint->verdicts, hash, &key);
    if (!entry) {
        if (tr_table_full(&endpoint->verdicts))
            tr_table_remove(&endpoint->verdicts, tr_table_oldest(&endpoint->verdicts));
        entry = tr_table_add(&endpoint->verdicts, hash, &key, 0);
    }
    entry->decision = lesson->decision;
    entry->reason = lesson->reason;
    entry->anybody = lesson->anybody;
    return true;
}

struct tr_peer *tr_find_peer(const struct tr_turn *turn, const struct tr_message_view *message, int direction)
{
    struct tr_peer *peer = tr_peer_of(turn->endpoint, message->id);

    if (!peer || !peer->known[direction] || peer->token->size != message->assertion_size)
        return NULL;
    if (memcmp(peer->token->assertion, message->assertion, message->assertion_size) != 0)
        return NULL;
    return turn->now->wall_s < peer->token->not_after ? peer : NULL;
}

struct tr_verdict_entry *tr_find_verdict(const struct tr_endpoint *endpoint, int direction, uint8_t protocol, const struct tr_token *token,
                                         const uint8_t address[16], uint16_t port)
{
    struct tr_verdict_key key;

    verdict_key(&key, direction, protocol, token, address, port);
    return tr_table_find(&endpoint->verdicts, tr_hash(endpoint, &key, sizeof key), &key);
}

void tr_teach_target(struct tr_endpoint *endpoint, const struct tr_end *end)
{
    uint64_t hash = tr_hash(endpoint, end, sizeof *end);

    if (tr_table_find(&endpoint->targets, hash, end))
        return;
    if (tr_table_full(&endpoint->targets))
        tr_table_remove(&endpoint->targets, tr_table_oldest(&endpoint->targets));
    tr_table_add(&endpoint->targets, hash, end, 0);
}

void tr_forget_target(struct tr_endpoint *endpoint, const struct tr_end *end)
{
    struct tr_target *target = tr_table_find(&endpoint->targets, tr_hash(endpoint, end, sizeof *end), end);

    if (target)
        tr_table_remove(&endpoint->targets, target);
}

/* -- exchanges of a moment ago -- */

bool tr_teach_warm(struct tr_endpoint *endpoint, const struct tr_end *dialled, struct tr_session *session, const struct tr_exchange *exchange,
                   uint32_t policy, bool waits)
{
    uint64_t hash = tr_hash(endpoint, dialled, sizeof *dialled);
    struct tr_warm *warm;

    if (policy != endpoint->policy)
        return false;
    tr_session_describe(session, exchange);
    tr_session_keep(session); /* first: it may be the old entry's */
    tr_forget_warm(endpoint, dialled);
    if (tr_table_full(&endpoint->warm))
        tr_forget_warm(endpoint, &((struct tr_warm *)tr_table_oldest(&endpoint->warm))->dialled);
    warm = tr_table_add(&endpoint->warm, hash, dialled, 0);
    warm->session = session;
    warm->policy = policy;
    warm->waits = waits;
    return true;
}

void tr_forget_warm(struct tr_endpoint *endpoint, const struct tr_end *dialled)
{
    struct tr_warm *warm = tr_table_find(&endpoint->warm, tr_hash(endpoint, dialled, sizeof *dialled), dialled);

    if (!warm)
        return;
    tr_session_release(warm->session);
    tr_table_remove(&endpoint->warm, warm);
}

void tr_teach_ticket(struct tr_endpoint *endpoint, struct tr_session *session, const struct tr_exchange *exchange)
{
    uint64_t hash = tr_hash(endpoint, exchange->ticket, TR_NONCE_SIZE);
    struct tr_ticket *ticket;

    tr_session_describe(session, exchange);
    tr_session_keep(session);
    tr_forget_ticket(endpoint, exchange->ticket);
    if (tr_table_full(&endpoint->tickets))
        tr_forget_ticket(endpoint, ((struct tr_ticket *)tr_table_oldest(&endpoint->tickets))->ticket);
    ticket = tr_table_add(&endpoint->tickets, hash, exchange->ticket, 0);
    ticket->session = session;
}

void tr_forget_ticket(struct tr_endpoint *endpoint, const uint8_t id[TR_NONCE_SIZE])
{
    struct tr_ticket *ticket = tr_table_find(&endpoint->tickets, tr_hash(endpoint, id, TR_NONCE_SIZE), id);

    if (!ticket)
        return;
    tr_session_release(ticket->session);
    tr_table_remove(&endpoint->tickets, ticket);
}

/* -- what Python owns -- */

struct tr_owned *tr_put_owned(struct tr_endpoint *endpoint, const struct tr_tuple *tuple)
{
    uint64_t hash = tr_hash(endpoint, tuple, sizeof *tuple);
    struct tr_owned *owned = tr_table_find(&endpoint->owned, hash, tuple);

    if (!owned) {
        if (tr_table_full(&endpoint->owned))
            tr_table_remove(&endpoint->owned, tr_table_oldest(&endpoint->owned));
        owned = tr_table_add(&endpoint->owned, hash, tuple, 0);
    }
    return owned;
}

/* An entry may have made room meanwhile, so what is taken off need not have been put on. */
static void take_off(struct tr_endpoint *endpoint, struct tr_owned *owned, uint32_t *count)
{
    if (*count)
        --*count;
    if (!owned->references && !owned->foreign && !owned->pending)
        tr_table_remove(&endpoint->owned, owned);
}

static struct tr_owned *find_owned(struct tr_endpoint *endpoint, const struct tr_tuple *tuple)
{
    return tr_table_find(&endpoint->owned, tr_hash(endpoint, tuple, sizeof *tuple), tuple);
}

void tr_own(struct tr_endpoint *endpoint, const struct tr_tuple *tuple, bool foreign)
{
    struct tr_owned *owned = tr_put_owned(endpoint, tuple);

    ++*(foreign ? &owned->foreign : &owned->references);
}

void tr_own_syn(struct tr_endpoint *endpoint, const struct tr_tuple *tuple, const uint8_t peer[TR_ID_SIZE])
{
    struct tr_owned *owned = tr_put_owned(endpoint, tuple);

    owned->references++;
    memcpy(owned->peer, peer, TR_ID_SIZE);
}

void tr_disown(struct tr_endpoint *endpoint, const struct tr_tuple *tuple, bool foreign)
{
    struct tr_owned *owned = find_owned(endpoint, tuple);

    if (owned)
        take_off(endpoint, owned, foreign ? &owned->foreign : &owned->references);
}

void tr_put_back(struct tr_endpoint *endpoint, const struct tr_tuple *tuple)
{
    struct tr_owned *owned = find_owned(endpoint, tuple);

    if (owned)
        take_off(endpoint, owned, &owned->pending);
}

/* -- accepted connections and events -- */

uint32_t tr_live_tuples(const struct tr_endpoint *endpoint, struct tr_tuple *out, uint32_t room)
{
    uint32_t count = 0;

    const struct tr_table *tables[] = {&endpoint->live, &endpoint->live_datagrams};

    for (size_t i = 0; i < 2; i++)
        for (const struct tr_live *live = tr_table_oldest(tables[i]); live && count < room; live = tr_table_newer(tables[i], live))
            out[count++] = live->tuple;
    return count;
}

bool tr_live_forget(struct tr_endpoint *endpoint, const struct tr_tuple *tuple)
{
    struct tr_live *live = tr_table_find(tr_live_table(endpoint, tuple), tr_hash(endpoint, tuple, sizeof *tuple), tuple);

    if (live)
        tr_forget_live(endpoint, live);
    return live != NULL;
}

bool tr_listen(struct tr_endpoint *endpoint, bool listening)
{
    if (listening && !endpoint->events)
        endpoint->events = calloc(TR_EVENTS, sizeof *endpoint->events);
    endpoint->listening = listening && endpoint->events;
    return endpoint->listening == listening;
}

bool tr_take_event(struct tr_endpoint *endpoint, struct tr_event *event)
{
    if (!endpoint->events_waiting)
        return false;
    *event = endpoint->events[endpoint->first_event];
    endpoint->first_event = (endpoint->first_event + 1) % TR_EVENTS;
    endpoint->events_waiting--;
    return true;
}
