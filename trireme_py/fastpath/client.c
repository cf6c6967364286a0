/* The client's end: the local pod opens a connection (the warm part of client.py). */
#include "octets.h"
#include "state.h"

/* The pod's SYN leaves: attach who the pod is. */
void tr_client_syn(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_view *view = &turn->view;
    const struct tr_packet *packet = turn->packet;
    struct tr_token *local = endpoint->identity;
    struct tr_client *flow = turn->client;
    struct tr_end target = {.port = turn->tuple.other_port};
    uint8_t fixed[TR_SYN_FIXED];
    struct tr_headers syn;
    uint32_t length;

    memcpy(target.address, turn->tuple.other, 16);
    if (turn->server || (flow && flow->isn == view->sequence) || !local)
        return tr_park(turn, TR_PARK_OWNED);
    if (!tr_table_find(&endpoint->targets, tr_hash(endpoint, &target, sizeof target), &target))
        return tr_park(turn, TR_PARK_OWNED);
    if (tr_has_fast_open(view) || view->body > TR_HEADERS || view->body + TR_SYN_FIXED + local->size > TR_PATH_MTU)
        return tr_park(turn, TR_PARK_OWNED);
    if (!endpoint->nonces)
        return tr_park(turn, TR_PARK_ENTROPY);
    tr_write_syn(fixed, local->id, endpoint->pool[endpoint->nonces - 1], local->size);
    syn.length = (uint8_t)tr_rewrite(view, view->sequence, NULL, 0, syn.data, sizeof syn.data);
    length = tr_rewrite(view, view->sequence, (const struct tr_part[]){{fixed, sizeof fixed}, {local->assertion, local->size}}, 2,
                        packet->out, packet->room);
    if (!length || !syn.length)
        return tr_park(turn, TR_PARK_OWNED);

    endpoint->nonces--;
    explicit_bzero(endpoint->pool[endpoint->nonces], TR_NONCE_SIZE);
    if (flow)
        tr_forget_client(endpoint, flow);
    else if (tr_table_full(&endpoint->clients))
        tr_forget_client(endpoint, tr_table_oldest(&endpoint->clients));
    flow = tr_table_add(&endpoint->clients, turn->hash, &turn->tuple, turn->now->mono_ns);
    flow->state = TR_SYN_CREATED;
    flow->isn = view->sequence;
    flow->local = tr_token_keep(local);
    memcpy(flow->syn_fixed, fixed, sizeof fixed);
    flow->syn = syn;
    tr_pass(turn, TR_PASS_CLEAR, length);
}

/* Whether the two ends have seen one and the same connection (relay.py), as far as it can be told here. */
bool tr_ends_agree(struct tr_turn *turn, const struct tr_end *server, const struct tr_end *client)
{
    const struct tr_tuple *tuple = &turn->tuple;
    struct tr_endpoint *endpoint = turn->endpoint;
    struct tr_end source = {.port = tuple->own_port}, dialled = {.port = tuple->other_port}, shown;

    memcpy(source.address, tuple->own, 16);
    memcpy(dialled.address, tuple->other, 16);
    if (memcmp(client->address, tuple->own, 16) != 0)
        return false;
    if (memcmp(server, &dialled, sizeof dialled) == 0)
        return true;
    if (!endpoint->translate)
        return false;
    return endpoint->translate(endpoint->translate_context, turn->view.version, turn->view.protocol, &source, &dialled, &shown) == TR_SHOWN &&
           memcmp(server, &shown, sizeof shown) == 0;
}

/* The server answers: believe it, judge it, prepare the proof. */
void tr_client_syn_ack(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_view *view = &turn->view;
    const struct tr_packet *packet = turn->packet;
    struct tr_client *flow = turn->client;
    const struct tr_verdict_entry *verdict;
    struct tr_message_view answer;
    struct tr_peer *peer;
    struct tr_end server, client;
    uint32_t length;

    if (!flow)
        return tr_park(turn, TR_PARK_PLAIN);
    if (view->acknowledgement != flow->isn + 1)
        return tr_park(turn, TR_PARK_OWNED);
    if (!packet->unsummed && !tr_checksum_is_right(view))
        return tr_drop(turn, TR_BAD_CHECKSUM);
    if (flow->state != TR_SYN_CREATED || view->captured < view->length)
        return tr_park(turn, TR_PARK_OWNED);
    if (!tr_read_message_untrusted(&answer, TR_MESSAGE_SYN_ACK, tr_payload(view), tr_payload_size(view)))
        return tr_park(turn, TR_PARK_OWNED);
    peer = tr_find_peer(turn, &answer, TR_EGRESS);
    /* A key goes with the identity it was agreed with. */
    if (!peer || flow->local != endpoint->identity || !tr_syn_ack_is_proven(endpoint->mac, peer->keys[TR_EGRESS], flow->syn_fixed, answer.fixed))
        return tr_park(turn, TR_PARK_OWNED);
    tr_read_ends_untrusted(answer.fixed, &server, &client);
    if (!tr_ends_agree(turn, &server, &client))
        return tr_park(turn, TR_PARK_OWNED);
    verdict = tr_find_verdict(endpoint, TR_EGRESS, TR_TCP, peer->token, server.address, server.port);
    length = tr_rewrite(view, view->sequence, NULL, 0, packet->out, packet->room);
    if (!verdict || !length || !tr_write_proof(endpoint->mac, flow->proof, peer->keys[TR_EGRESS], flow->syn_fixed, answer.fixed))
        return tr_park(turn, TR_PARK_OWNED);

    flow->state = TR_SYN_ACK_CONSUMED;
    endpoint->counters.proving++;
    flow->peer = tr_token_keep(peer->token);
    flow->actual = server;
    flow->server_isn = view->sequence;
    flow->policy = endpoint->policy;
    flow->decision = verdict->decision;
    flow->reason = verdict->reason;
    memcpy(flow->syn_ack_fixed, answer.fixed, TR_SYN_ACK_FIXED);
    tr_table_touch(&endpoint->clients, flow, turn->now->mono_ns);
    tr_table_touch(&endpoint->peers, peer, turn->now->mono_ns);
    tr_pass(turn, TR_PASS, length);
}

/* The pod's first segment after the SYN-ACK: put the proof in front of it. */
static void prove(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_view *view = &turn->view;
    const struct tr_packet *packet = turn->packet;
    struct tr_client *flow = turn->client;
    struct tr_live live = {.direction = TR_EGRESS, .isn = flow->isn, .policy = endpoint->policy, .peer = flow->peer};
    struct tr_headers ack;
    uint32_t length;

    if (view->sequence != flow->isn + 1 || view->length + TR_PROOF > TR_PATH_MTU || view->captured < view->length)
        return tr_park(turn, TR_PARK_OWNED);
    if (view->flags & TR_URG || flow->policy != endpoint->policy || view->body > TR_HEADERS)
        return tr_park(turn, TR_PARK_OWNED);
    ack.length = (uint8_t)tr_rewrite(view, view->sequence, NULL, 0, ack.data, sizeof ack.data);
    length = tr_rewrite(view, flow->isn + 1 - TR_PROOF,
                        (const struct tr_part[]){{flow->proof, TR_PROOF}, {tr_payload(view), tr_payload_size(view)}}, 2, packet->out,
                        packet->room);
    if (!length || !ack.length)
        return tr_park(turn, TR_PARK_OWNED);

    flow->state = TR_ACK_CREATED;
    endpoint->counters.proving--;
    flow->ack = ack;
    flow->proven_ns = turn->now->mono_ns;
    live.port = flow->actual.port;
    memcpy(live.address, flow->actual.address, 16);
    tr_remember_live(turn, &turn->tuple, &live);
    tr_announce(turn, &live, flow->decision, flow->reason);
    tr_table_touch(&endpoint->clients, flow, turn->now->mono_ns);
    tr_accept(turn, length);
}

/* Anything but a SYN leaves the pod on a connection it opened. */
void tr_client_segment(struct tr_turn *turn)
{
    const struct tr_client *flow = turn->client;
    const struct tr_live *live = turn->live;
    bool standing = live && live->isn == flow->isn && live->policy == turn->endpoint->policy;

    if (flow->state == TR_ACK_CREATED && !standing)
        return tr_park(turn, TR_PARK_OWNED);
    if (turn->view.flags & TR_RST)
        return tr_pass(turn, TR_PASS, 0);
    if (flow->state == TR_SYN_ACK_CONSUMED)
        return prove(turn);
    if (flow->state == TR_ACK_CREATED && turn->view.sequence != flow->isn + 1 - TR_PROOF)
        return tr_accept(turn, 0);
    tr_park(turn, TR_PARK_OWNED);
}
