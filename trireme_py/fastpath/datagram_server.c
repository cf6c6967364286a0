/* The server's end on UDP: somebody who has proved himself a moment ago begins a flow with the local pod (the warm part of datagram_server.py). */
#include "octets.h"
#include "state.h"

/* The ticket that a RESUME goes on from, if it is this client's and still holds. */
static struct tr_session *find_session(const struct tr_turn *turn, const struct tr_resume_view *resume)
{
    const struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_ticket *ticket = tr_table_find(&endpoint->tickets, tr_hash(endpoint, resume->ticket, TR_NONCE_SIZE), resume->ticket);
    const struct tr_exchange *exchange;

    if (!ticket)
        return NULL;
    exchange = &ticket->session->exchange;
    if (memcmp(exchange->server.address, turn->tuple.own, 16) != 0 || exchange->server.port != turn->tuple.own_port ||
        memcmp(exchange->client, turn->tuple.other, 16) != 0)
        return NULL;
    if (memcmp(exchange->peer->id, resume->hello.id, TR_ID_SIZE) != 0 || exchange->local != endpoint->identity)
        return NULL;
    if (turn->now->wall_s < exchange->not_before || turn->now->wall_s >= exchange->not_after)
        return NULL;
    if (tr_session_used(ticket->session) + TR_TICKET_MS * TR_MS <= turn->now->mono_ns)
        return NULL;
    return ticket->session;
}

static struct tr_live live_of(const struct tr_turn *turn, struct tr_token *peer)
{
    struct tr_live live = {.direction = TR_INGRESS, .port = turn->tuple.own_port, .policy = turn->endpoint->policy, .peer = peer};

    memcpy(live.address, turn->tuple.other, 16);
    return live;
}

/* Remember what the RESUME of a flow was answered with, in place of an older one's. */
static void remember_flow(struct tr_turn *turn, struct tr_session *session, const struct tr_resume_view *resume, const uint8_t *confirm, bool waits)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    struct tr_datagram_server *flow = turn->asked;

    tr_session_keep(session); /* first: it may be the old flow's */
    if (flow)
        tr_forget_datagram_server(endpoint, flow);
    else if (tr_table_full(&endpoint->datagram_servers))
        tr_forget_datagram_server(endpoint, tr_table_oldest(&endpoint->datagram_servers));
    flow = tr_table_add(&endpoint->datagram_servers, turn->hash, &turn->tuple, turn->now->mono_ns);
    flow->stage = TR_RESUME_CONSUMED;
    flow->waits = waits;
    flow->request = turn->view.length;
    flow->session = session;
    memcpy(flow->hello_fixed, resume->hello.fixed, TR_SYN_FIXED);
    memcpy(flow->confirm, confirm, TR_CONFIRM);
}

/* A datagram arrives with a proof of its own. */
void tr_datagram_resume(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_datagram *datagram = &turn->datagram;
    struct tr_resume_view resume;
    struct tr_session *session;
    const struct tr_verdict_entry *verdict;
    struct tr_resume_ends ends;
    struct tr_end own = {.port = turn->tuple.own_port}, other = {.port = turn->tuple.other_port};
    uint8_t confirm[TR_CONFIRM];
    uint32_t length;
    struct tr_live live;
    bool first;

    if (turn->live || turn->began || !tr_read_resume_untrusted(&resume, datagram->message, datagram->message_size))
        return tr_park(turn, tr_datagram_class(turn, NULL));
    session = find_session(turn, &resume);
    if (!session)
        return tr_park(turn, tr_datagram_class(turn, NULL));
    first = !turn->asked || memcmp(turn->asked->hello_fixed, resume.hello.fixed, TR_SYN_FIXED) != 0;
    if (!first && turn->asked->stage != TR_RESUME_CONSUMED)
        return tr_park(turn, tr_datagram_class(turn, NULL));
    if (!tr_session_is_fresh(session, resume.counter))
        return tr_drop(turn, TR_REPLAYED);
    ends = (struct tr_resume_ends){&session->exchange.server, session->exchange.client};
    if (!tr_resume_is_proven(endpoint->mac, &resume, session->exchange.key, &ends, &datagram->payload))
        return tr_park(turn, tr_datagram_class(turn, NULL));
    verdict = tr_find_verdict(endpoint, TR_INGRESS, TR_UDP, session->exchange.peer, turn->tuple.other, turn->tuple.own_port);
    length = tr_without_message(&turn->view, &datagram->payload, turn->packet->out, turn->packet->room);
    memcpy(own.address, turn->tuple.own, 16);
    memcpy(other.address, turn->tuple.other, 16);
    if (!verdict || !length || !tr_write_confirm(endpoint->mac, confirm, resume.fixed, resume.hello.fixed, &own, &other, session->exchange.key))
        return tr_park(turn, tr_datagram_class(turn, NULL));
    /* The one look that counts: Python may have taken the same counter meanwhile. */
    if (!tr_session_commit(session, resume.counter))
        return tr_drop(turn, TR_REPLAYED);

    tr_session_touch(session, turn->now->mono_ns);
    live = live_of(turn, session->exchange.peer);
    if (first)
        tr_announce(turn, &live, verdict->decision, verdict->reason);
    if (verdict->anybody && !resume.asks) {
        tr_remember_live(turn, &turn->tuple, &live); /* nobody asks for more */
        return tr_accept(turn, length);
    }
    remember_flow(turn, session, &resume, confirm, !verdict->anybody);
    tr_pass(turn, TR_PASS, length);
}

/* The pod answers on a flow whose datagrams prove themselves one by one: confirm that it is still us. */
void tr_datagram_reply(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    struct tr_datagram_server *flow = turn->asked;
    uint32_t length = 0;

    if (flow->stage == TR_RESUME_CONSUMED && tr_datagram_carries(turn, TR_CONFIRM) &&
        tr_find_verdict(endpoint, TR_INGRESS, TR_UDP, flow->session->exchange.peer, turn->tuple.other, turn->tuple.own_port))
        length = tr_with_message(&turn->view, &turn->datagram.payload, &(const struct tr_part){flow->confirm, TR_CONFIRM}, 1, false,
                                 turn->packet->out, turn->packet->room);
    if (!length)
        return tr_park(turn, TR_PARK_OWNED);
    tr_table_touch(&endpoint->datagram_servers, flow, turn->now->mono_ns);
    tr_pass(turn, TR_PASS, length);
}

/* The client's proof arrives: the flow is its own from here on. */
void tr_datagram_proof(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_datagram *datagram = &turn->datagram;
    struct tr_datagram_server *flow = turn->asked;
    struct tr_message_view proof;
    struct tr_token *peer;
    struct tr_live live;
    uint32_t length;

    if (!flow)
        return tr_park(turn, tr_datagram_class(turn, NULL));
    peer = flow->session->exchange.peer;
    if (!tr_read_message_untrusted(&proof, TR_MESSAGE_PROOF, datagram->message, datagram->message_size))
        return tr_park(turn, tr_datagram_class(turn, NULL));
    if (!tr_datagram_proof_is_right(endpoint->mac, proof.fixed, flow->session->exchange.key, flow->hello_fixed, flow->confirm))
        return tr_park(turn, tr_datagram_class(turn, NULL));
    length = tr_without_message(&turn->view, &datagram->payload, turn->packet->out, turn->packet->room);
    if (!length || !tr_find_verdict(endpoint, TR_INGRESS, TR_UDP, peer, turn->tuple.other, turn->tuple.own_port))
        return tr_park(turn, tr_datagram_class(turn, NULL));

    flow->stage = TR_PROVEN;
    live = live_of(turn, peer);
    tr_remember_live(turn, &turn->tuple, &live);
    tr_table_touch(&endpoint->datagram_servers, flow, turn->now->mono_ns);
    if (datagram->sealed && !datagram->payload.size)
        return tr_drop(turn, TR_CONSUMED);
    tr_accept(turn, length);
}
