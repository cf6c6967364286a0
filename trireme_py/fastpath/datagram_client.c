/* The client's end on UDP: the local pod begins a flow, and the server was identified a moment ago (the warm part of datagram_client.py). */
#include "octets.h"
#include "state.h"

static struct tr_warm *find_warm(const struct tr_turn *turn)
{
    const struct tr_endpoint *endpoint = turn->endpoint;
    struct tr_end dialled = {.port = turn->tuple.other_port};
    const struct tr_exchange *exchange;
    struct tr_warm *warm;

    memcpy(dialled.address, turn->tuple.other, 16);
    warm = tr_table_find(&endpoint->warm, tr_hash(endpoint, &dialled, sizeof dialled), &dialled);
    if (!warm || warm->policy != endpoint->policy)
        return NULL;
    exchange = &warm->session->exchange;
    if (exchange->local != endpoint->identity || turn->now->wall_s < exchange->not_before || turn->now->wall_s > exchange->not_after)
        return NULL;
    if (tr_session_used(warm->session) + TR_WARM_MS * TR_MS <= turn->now->mono_ns)
        return NULL;
    return tr_find_verdict(endpoint, TR_EGRESS, TR_UDP, exchange->peer, exchange->server.address, exchange->server.port) ? warm : NULL;
}

/* Put a proof of its own on the datagram, sealed if nobody but the right server may read it. Returns its octets, or 0. */
static uint32_t resume(struct tr_turn *turn, struct tr_session *session, const uint8_t hello[TR_SYN_FIXED], bool waits,
                       uint8_t fixed[TR_RESUME_FIXED])
{
    const struct tr_exchange *exchange = &session->exchange;
    const struct tr_resume_ends ends = {&exchange->server, exchange->client};
    const struct tr_token *local = exchange->local;

    if (!tr_write_resume(turn->endpoint->mac, fixed, exchange->ticket, tr_session_take(session), hello, local->size, exchange->key, &ends,
                         &turn->datagram.payload))
        return 0;
    return tr_with_message(&turn->view, &turn->datagram.payload,
                           (const struct tr_part[]){{fixed, TR_RESUME_FIXED}, {hello, TR_SYN_FIXED}, {local->assertion, local->size}}, 3, waits,
                           turn->packet->out, turn->packet->room);
}

/* The first datagram of a flow leaves. */
void tr_datagram_begin(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_view *view = &turn->view;
    const struct tr_warm *warm = find_warm(turn);
    const struct tr_token *local = endpoint->identity;
    uint32_t headers = view->transport + TR_UDP_HEADER, length;
    uint8_t hello[TR_SYN_FIXED], fixed[TR_RESUME_FIXED];
    struct tr_datagram_client *flow;

    if (!warm || headers > TR_HEADERS || turn->packet->room < TR_PATH_MTU)
        return tr_park(turn, TR_PARK_OWNED);
    if (!tr_datagram_carries(turn, TR_RESUME_FIXED + TR_SYN_FIXED + local->size))
        return tr_park(turn, TR_PARK_OWNED);
    if (!endpoint->nonces)
        return tr_park(turn, TR_PARK_ENTROPY);
    tr_write_hello(hello, local->id, endpoint->pool[endpoint->nonces - 1], local->size, warm->waits);
    length = resume(turn, warm->session, hello, warm->waits, fixed);
    if (!length)
        return tr_park(turn, TR_PARK_OWNED);

    endpoint->nonces--;
    explicit_bzero(endpoint->pool[endpoint->nonces], TR_NONCE_SIZE);
    if (tr_table_full(&endpoint->datagram_clients))
        tr_forget_datagram_client(endpoint, tr_table_oldest(&endpoint->datagram_clients));
    flow = tr_table_add(&endpoint->datagram_clients, turn->hash, &turn->tuple, turn->now->mono_ns);
    flow->stage = TR_RESUMED;
    flow->waits = warm->waits;
    flow->policy = endpoint->policy;
    flow->began_ns = turn->now->mono_ns;
    flow->session = tr_session_keep(warm->session);
    flow->resumes = 1;
    flow->first.length = (uint8_t)headers;
    memcpy(flow->first.data, view->data, headers);
    memcpy(flow->hello_fixed, hello, sizeof hello);
    memcpy(flow->resume[0], fixed, sizeof fixed);
    tr_pass(turn, TR_PASS, length);
}

static void remember_live(struct tr_turn *turn)
{
    const struct tr_datagram_client *flow = turn->began;
    struct tr_live live = {
        .direction = TR_EGRESS, .port = flow->actual.port, .policy = turn->endpoint->policy, .peer = flow->session->exchange.peer};

    memcpy(live.address, flow->actual.address, 16);
    tr_remember_live(turn, &turn->tuple, &live);
}

/* The flow goes on after a confirmation: prove it, so that both kernels can take it over. */
static void prove(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    struct tr_datagram_client *flow = turn->began;
    uint32_t length = 0;

    if (tr_datagram_carries(turn, TR_PROOF) &&
        tr_find_verdict(endpoint, TR_EGRESS, TR_UDP, flow->session->exchange.peer, flow->actual.address, flow->actual.port))
        length = tr_with_message(&turn->view, &turn->datagram.payload, &(const struct tr_part){flow->proof, TR_PROOF}, 1, false,
                                 turn->packet->out, turn->packet->room);
    if (!length)
        return tr_park(turn, TR_PARK_OWNED);

    flow->stage = TR_PROVEN;
    remember_live(turn);
    tr_table_touch(&endpoint->datagram_clients, flow, turn->now->mono_ns);
    tr_accept(turn, length);
}

/* A further datagram of a flow whose exchange is under way leaves. */
void tr_datagram_go_on(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    struct tr_datagram_client *flow = turn->began;
    const struct tr_token *local = flow->session->exchange.local;
    const struct tr_warm *warm;
    uint32_t length;

    if (flow->stage != TR_RESUMED || flow->policy != endpoint->policy)
        return tr_park(turn, TR_PARK_OWNED);
    if (flow->confirmed)
        return prove(turn);
    if (turn->now->mono_ns - flow->began_ns >= TR_RESUMING_MS * TR_MS || flow->resumes == TR_RESUMES || turn->packet->room < TR_PATH_MTU ||
        !tr_datagram_carries(turn, TR_RESUME_FIXED + TR_SYN_FIXED + local->size))
        return tr_park(turn, TR_PARK_OWNED);
    warm = find_warm(turn);
    if (!warm || warm->session != flow->session)
        return tr_park(turn, TR_PARK_OWNED);
    length = resume(turn, flow->session, flow->hello_fixed, flow->waits, flow->resume[flow->resumes]);
    if (!length)
        return tr_park(turn, TR_PARK_OWNED);

    flow->resumes++;
    tr_table_touch(&endpoint->datagram_clients, flow, turn->now->mono_ns);
    tr_pass(turn, TR_PASS, length);
}

/* The RESUME that a CONFIRM is about. */
static const uint8_t *find_resume(const struct tr_datagram_client *flow, const uint8_t confirm[TR_CONFIRM])
{
    for (uint32_t i = 0; i < flow->resumes; i++)
        if (memcmp(flow->resume[i] + 12, confirm + 12, TR_NONCE_SIZE + 8) == 0) /* ticket and counter */
            return flow->resume[i];
    return NULL;
}

/* The server confirms that it is still the one: its answer may be read. */
void tr_datagram_confirm(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_datagram *datagram = &turn->datagram;
    struct tr_datagram_client *flow = turn->began;
    const struct tr_exchange *exchange;
    const struct tr_verdict_entry *verdict;
    const struct tr_warm *warm;
    struct tr_message_view confirm;
    struct tr_end server, client;
    const uint8_t *resumed;
    uint8_t proof[TR_PROOF];
    uint32_t length;
    struct tr_live live;

    if (!flow)
        return tr_park(turn, tr_datagram_class(turn, NULL));
    if (flow->stage != TR_RESUMED || flow->confirmed || flow->policy != endpoint->policy || datagram->sealed)
        return tr_park(turn, TR_PARK_OWNED);
    if (!tr_read_message_untrusted(&confirm, TR_MESSAGE_CONFIRM, datagram->message, datagram->message_size))
        return tr_park(turn, TR_PARK_OWNED);
    exchange = &flow->session->exchange;
    warm = find_warm(turn);
    resumed = find_resume(flow, confirm.fixed);
    if (!resumed || !warm || warm->session != flow->session ||
        !tr_confirm_is_proven(endpoint->mac, confirm.fixed, resumed, flow->hello_fixed, exchange->key))
        return tr_park(turn, TR_PARK_OWNED);
    tr_read_confirm_ends_untrusted(confirm.fixed, &server, &client);
    if (!tr_ends_agree(turn, &server, &client))
        return tr_park(turn, TR_PARK_OWNED);
    verdict = tr_find_verdict(endpoint, TR_EGRESS, TR_UDP, exchange->peer, server.address, server.port);
    length = tr_without_message(&turn->view, &datagram->payload, turn->packet->out, turn->packet->room);
    if (!verdict || !length || !tr_write_datagram_proof(endpoint->mac, proof, exchange->key, flow->hello_fixed, confirm.fixed))
        return tr_park(turn, TR_PARK_OWNED);

    flow->confirmed = true;
    flow->actual = server;
    memcpy(flow->proof, proof, sizeof proof);
    tr_session_touch(flow->session, turn->now->mono_ns);
    tr_table_touch(&endpoint->datagram_clients, flow, turn->now->mono_ns);
    live = (struct tr_live){.direction = TR_EGRESS, .port = server.port, .peer = exchange->peer};
    memcpy(live.address, server.address, 16);
    tr_announce(turn, &live, verdict->decision, verdict->reason);
    tr_pass(turn, TR_PASS, length);
}
