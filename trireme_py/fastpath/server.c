/* The server's end: somebody opens a connection to the local pod (the warm part of server.py). */
#include "octets.h"
#include "state.h"

/* A SYN arrives: who asks, and would policy let that one in? */
void tr_server_syn(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_view *view = &turn->view;
    const struct tr_packet *packet = turn->packet;
    struct tr_server *flow = turn->server;
    struct tr_message_view message;
    struct tr_tuple key;
    struct tr_syn *syn;
    struct tr_peer *peer;
    uint32_t length;

    if (!packet->unsummed && !tr_checksum_is_right(view))
        return tr_drop(turn, TR_BAD_CHECKSUM);
    if (!tr_is_message(tr_payload(view), tr_payload_size(view)))
        return tr_park(turn, TR_PARK_PLAIN);
    if (!tr_read_message_untrusted(&message, TR_MESSAGE_SYN, tr_payload(view), tr_payload_size(view)))
        return tr_park(turn, TR_PARK_STRANGER);
    peer = tr_find_peer(turn, &message, TR_INGRESS);
    if (!peer || !endpoint->identity)
        return tr_park(turn, TR_PARK_STRANGER);
    if (!tr_find_verdict(endpoint, TR_INGRESS, TR_TCP, peer->token, turn->tuple.other, turn->tuple.own_port))
        return tr_park(turn, tr_charge(turn, peer));
    if (turn->client || (turn->live && turn->live->isn == view->sequence))
        return tr_park(turn, tr_charge(turn, peer));
    tr_syn_key(&key, turn->tuple.other, turn->tuple.other_port, view->sequence);
    syn = tr_find_syn(endpoint, &key);
    /* One exchange at a time on a tuple: another SYN there, or another port for the same one, is Python's to tell apart. */
    if (syn ? syn->server != flow || memcmp(flow->syn_fixed, message.fixed, TR_SYN_FIXED) != 0 : flow != NULL)
        return tr_park(turn, tr_charge(turn, peer));
    if (tr_has_fast_open(view))
        return tr_park(turn, tr_charge(turn, peer));
    length = tr_rewrite(view, view->sequence, NULL, 0, packet->out, packet->room);
    if (!length)
        return tr_park(turn, tr_charge(turn, peer));

    if (flow) {
        tr_table_touch(&endpoint->servers, flow, turn->now->mono_ns);
        return tr_pass(turn, TR_PASS, length);
    }
    if (tr_table_full(&endpoint->servers))
        tr_forget_server(endpoint, tr_table_oldest(&endpoint->servers));
    flow = tr_table_add(&endpoint->servers, turn->hash, &turn->tuple, turn->now->mono_ns);
    flow->state = TR_SYN_CONSUMED;
    flow->isn = view->sequence;
    flow->local = tr_token_keep(endpoint->identity);
    flow->peer = tr_token_keep(peer->token);
    memcpy(flow->syn_fixed, message.fixed, TR_SYN_FIXED);
    memcpy(flow->key, peer->keys[TR_INGRESS], TR_KEY_SIZE);
    syn = tr_table_add(&endpoint->syns, tr_hash(endpoint, &key, sizeof key), &key, turn->now->mono_ns);
    syn->server = flow;
    tr_table_touch(&endpoint->peers, peer, turn->now->mono_ns);
    tr_pass(turn, TR_PASS, length);
}

/* The pod's kernel begins a connection: what went before on these ports is over. Should the exchange be forgotten before its proof, its data
 * must not pass for that of the old connection. */
static void end_old(struct tr_endpoint *endpoint, const struct tr_tuple *tuple, uint32_t isn)
{
    struct tr_live *old = tr_table_find(&endpoint->live, tr_hash(endpoint, tuple, sizeof *tuple), tuple);

    if (old && old->isn != isn)
        tr_forget_live(endpoint, old);
}

/* The pod's SYN-ACK leaves: attach the proof of who the pod is. */
void tr_server_syn_ack(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_view *view = &turn->view;
    const struct tr_packet *packet = turn->packet;
    struct tr_tuple key;
    struct tr_syn *syn;
    struct tr_server *flow;
    struct tr_headers syn_ack;
    struct tr_end own, other;
    uint32_t length;

    tr_syn_key(&key, turn->tuple.other, turn->tuple.other_port, view->acknowledgement - 1);
    syn = tr_find_syn(endpoint, &key);
    if (!syn || view->captured < view->length || view->length != view->body || !tr_copy_headers(&syn_ack, view))
        return tr_park(turn, TR_PARK_OWNED);
    flow = syn->server;
    if (view->body + TR_SYN_ACK_FIXED + flow->local->size > TR_PATH_MTU)
        return tr_park(turn, TR_PARK_OWNED);
    if (flow->state == TR_SYN_CONSUMED) {
        if (!endpoint->nonces)
            return tr_park(turn, TR_PARK_ENTROPY);
        own.port = flow->tuple.own_port;
        other.port = flow->tuple.other_port;
        memcpy(own.address, flow->tuple.own, 16);
        memcpy(other.address, flow->tuple.other, 16);
        if (!tr_write_syn_ack(endpoint->mac, flow->syn_ack_fixed, flow->syn_fixed, flow->local->id,
                              endpoint->pool[endpoint->nonces - 1], &own, &other, flow->local->size, flow->key))
            return tr_park(turn, TR_PARK_OWNED);
    }
    length = tr_rewrite(view, view->sequence,
                        (const struct tr_part[]){{flow->syn_ack_fixed, TR_SYN_ACK_FIXED}, {flow->local->assertion, flow->local->size}},
                        2, packet->out, packet->room);
    if (!length)
        return tr_park(turn, TR_PARK_OWNED);

    if (flow->state == TR_SYN_CONSUMED) {
        endpoint->nonces--;
        explicit_bzero(endpoint->pool[endpoint->nonces], TR_NONCE_SIZE);
    }
    if (packet->unsummed)
        tr_packet_complete_sum(syn_ack.data, syn_ack.length);
    flow->state = TR_SYN_ACK_CREATED;
    flow->server_isn = view->sequence;
    flow->answered_port = view->source_port;
    flow->syn_ack = syn_ack;
    end_old(endpoint, &flow->tuple, flow->isn);
    if (flow->answered_port != flow->tuple.own_port)
        end_old(endpoint, &turn->tuple, flow->isn);
    tr_pass(turn, TR_PASS_CLEAR, length);
}

static void park_segment(struct tr_turn *turn)
{
    tr_park(turn, tr_charge_segment(turn, turn->server->peer->id));
}

/* The client's proof arrives, in front of its first octets: check it, take it off, let the rest through. */
void tr_server_proof(struct tr_turn *turn)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    const struct tr_view *view = &turn->view;
    const struct tr_packet *packet = turn->packet;
    struct tr_server *flow = turn->server;
    const struct tr_verdict_entry *verdict;
    struct tr_message_view proof;
    struct tr_live live;
    struct tr_tuple redirected;
    uint32_t length, size = tr_payload_size(view);
    const uint8_t *payload = tr_payload(view);

    if (!packet->unsummed && !tr_checksum_is_right(view))
        return tr_drop(turn, TR_BAD_CHECKSUM);
    if (flow->state != TR_SYN_ACK_CREATED || view->flags & TR_RST || view->captured < view->length)
        return park_segment(turn);
    if (!tr_read_message_untrusted(&proof, TR_MESSAGE_ACK, payload, size < TR_PROOF ? size : TR_PROOF))
        return park_segment(turn);
    if (!tr_proof_is_right(endpoint->mac, proof.fixed, flow->key, flow->syn_fixed, flow->syn_ack_fixed))
        return park_segment(turn);
    if (view->acknowledgement != flow->server_isn + 1)
        return park_segment(turn);
    verdict = tr_find_verdict(endpoint, TR_INGRESS, TR_TCP, flow->peer, turn->tuple.other, turn->tuple.own_port);
    length = tr_rewrite(view, view->sequence + TR_PROOF, (const struct tr_part[]){{payload + TR_PROOF, size - TR_PROOF}}, 1, packet->out,
                        packet->room);
    if (!verdict || !length)
        return park_segment(turn);

    live = (struct tr_live){
        .direction = TR_INGRESS,
        .port = turn->tuple.own_port,
        .isn = flow->isn,
        .server_isn = flow->server_isn,
        .policy = endpoint->policy,
        .peer = flow->peer,
    };
    memcpy(live.address, turn->tuple.other, 16);
    tr_remember_live(turn, &turn->tuple, &live);
    if (flow->answered_port != turn->tuple.own_port) {
        redirected = turn->tuple;
        redirected.own_port = flow->answered_port;
        tr_remember_live(turn, &redirected, &live);
    }
    tr_announce(turn, &live, verdict->decision, verdict->reason);
    tr_forget_server(endpoint, flow);
    tr_accept(turn, length);
}
