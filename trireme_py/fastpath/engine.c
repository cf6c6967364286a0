/* Which part of the engine a packet belongs to, what ends a turn, and the way to Python (the warm part of datapath.py). */
#include "engine.h"

#include "octets.h"
#include "state.h"

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
    turn->result->deferred = turn->packet->more;
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

/* The class of a SYN of a known identity. Anybody who has seen one can repeat it at will, and nothing tells his from the owner's. So each
 * identity has a share, and what exceeds it is a stranger's: no other identity waits for it. */
enum tr_park tr_charge(const struct tr_turn *turn, struct tr_peer *peer)
{
    uint64_t now = turn->now->mono_ns, spent = peer->spent_ns > now ? peer->spent_ns : now;

    if (spent - now > (TR_SHARE - 1) * TR_SHARE_NS)
        return TR_PARK_STRANGER;
    peer->spent_ns = spent + TR_SHARE_NS;
    return TR_PARK_KNOWN;
}

/* The class of a later segment of an exchange that this identity's SYN has begun. A copied SYN begins one as well, so it comes out of the
 * same share. What exceeds that is worth what it would be without the exchange. */
enum tr_park tr_charge_segment(const struct tr_turn *turn, const uint8_t id[TR_ID_SIZE])
{
    struct tr_peer *peer = tr_peer_of(turn->endpoint, id);

    return peer && tr_charge(turn, peer) == TR_PARK_KNOWN ? TR_PARK_KNOWN : TR_PARK_PLAIN;
}

/* -- packets -- */

/* The SYN that a packet begins, answers or resets, where those are matched by it and not by the tuple. */
static bool names_syn(struct tr_tuple *key, const struct tr_turn *turn)
{
    const struct tr_view *view = &turn->view;
    bool leaving = turn->packet->hook == TR_APPLICATION;
    uint8_t handshake = view->flags & (TR_SYN | TR_ACK);

    if (view->protocol != TR_TCP)
        return false;
    if (leaving && (handshake == (TR_SYN | TR_ACK) || view->flags & TR_RST))
        tr_syn_key(key, turn->tuple.other, turn->tuple.other_port, view->acknowledgement - 1);
    else if (!leaving && handshake == TR_SYN)
        tr_syn_key(key, turn->tuple.other, turn->tuple.other_port, view->sequence);
    else
        return false;
    return true;
}

static bool has_connections(uint8_t protocol)
{
    return protocol == TR_TCP || protocol == TR_UDP;
}

/* Parse, and name the connection, if it is one of TCP or UDP: that of the packet, or of the one that an ICMP error quotes. */
static bool identify_untrusted(struct tr_turn *turn, bool *named, enum tr_reason *reason)
{
    bool leaving = turn->packet->hook == TR_APPLICATION;
    struct tr_view quoted;

    *named = false;
    if (!tr_parse_untrusted(&turn->view, turn->packet->data, turn->packet->captured, reason))
        return false;
    if (has_connections(turn->view.protocol)) {
        tr_tuple_of(&turn->tuple, &turn->view, leaving);
    } else if (tr_parse_quoted_untrusted(&quoted, &turn->view) && has_connections(quoted.protocol)) {
        tr_tuple_of(&turn->tuple, &quoted, !leaving);
    } else {
        return true;
    }
    *named = true;
    turn->hash = tr_hash(turn->endpoint, &turn->tuple, sizeof turn->tuple);
    return true;
}

/* The class of a segment from the network of a connection that nothing is known of by its tuple. It may be the proof of an exchange that
 * Python has, known by the SYN as that is. Without having seen the SYN nobody hits its number; who has seen or copied it sends at the
 * expense of the identity's share. The proof of an identity that has none here is plain, as nothing else bounds such. */
static enum tr_park class_of_segment(const struct tr_turn *turn)
{
    const struct tr_view *view = &turn->view;
    uint32_t size = tr_payload_size(view);
    struct tr_message_view proof;
    const struct tr_owned *owned;
    struct tr_tuple key;

    if (view->flags & TR_SYN || !turn->endpoint->owned.count)
        return TR_PARK_PLAIN;
    if (!tr_read_message_untrusted(&proof, TR_MESSAGE_ACK, tr_payload(view), size < TR_PROOF ? size : TR_PROOF))
        return TR_PARK_PLAIN;
    tr_syn_key(&key, turn->tuple.other, turn->tuple.other_port, view->sequence + TR_PROOF - 1);
    owned = tr_find_owned(turn->endpoint, &key, tr_hash(turn->endpoint, &key, sizeof key));
    return owned && owned->references ? tr_charge_segment(turn, owned->peer) : TR_PARK_PLAIN;
}

/* The class of a packet that is Python's. What somebody outside can send at will must not pass for more than it is: that a packet of a
 * connection is on its way to Python already does not make the next one worth more. */
static enum tr_park class_of(const struct tr_turn *turn, const struct tr_owned *owned)
{
    const struct tr_view *view = &turn->view;
    uint8_t handshake = view->flags & (TR_SYN | TR_ACK);
    struct tr_message_view message;
    struct tr_peer *peer;

    if (turn->packet->hook == TR_APPLICATION)
        return TR_PARK_OWNED;
    if (handshake != TR_SYN)
        return owned && (owned->references || owned->known) ? TR_PARK_OWNED : class_of_segment(turn);
    if (!tr_is_message(tr_payload(view), tr_payload_size(view)))
        return TR_PARK_PLAIN;
    if (!tr_read_message_untrusted(&message, TR_MESSAGE_SYN, tr_payload(view), tr_payload_size(view)))
        return TR_PARK_STRANGER;
    peer = tr_find_peer(turn, &message, TR_INGRESS);
    return peer ? tr_charge(turn, peer) : TR_PARK_STRANGER;
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
        return tr_park(turn, tr_charge_segment(turn, turn->server->peer->id));
    if (turn->live)
        return judge_again(turn);
    tr_park(turn, turn->client ? TR_PARK_OWNED : class_of_segment(turn));
}

/* The tables that a packet is looked up in by its connection are large, and cold when it comes. */
static void prefetch(const struct tr_turn *turn)
{
    const struct tr_endpoint *endpoint = turn->endpoint;
    bool udp = turn->view.protocol == TR_UDP;

    tr_table_prefetch(&endpoint->owned, turn->hash);
    tr_table_prefetch(udp ? &endpoint->datagram_clients : &endpoint->clients, turn->hash);
    tr_table_prefetch(udp ? &endpoint->datagram_servers : &endpoint->servers, turn->hash);
    tr_table_prefetch(udp ? &endpoint->live_datagrams : &endpoint->live, turn->hash);
}

void tr_engine_receive(struct tr_endpoint *endpoint, const struct tr_packet *packet, const struct tr_instant *now,
                       struct tr_result *result)
{
    struct tr_turn turn = {.endpoint = endpoint, .packet = packet, .now = now, .result = result};
    enum tr_park odd = packet->hook == TR_APPLICATION ? TR_PARK_OWNED : TR_PARK_PLAIN;
    const struct tr_owned *owned;
    enum tr_reason reason;
    struct tr_tuple key;
    bool named;

    *result = (struct tr_result){0};
    if (!identify_untrusted(&turn, &named, &reason))
        return tr_drop(&turn, reason);
    if (!has_connections(turn.view.protocol))
        return tr_park(&turn, odd);
    if (turn.view.flags & TR_SYN && turn.view.flags & (TR_RST | TR_FIN))
        return tr_drop(&turn, TR_MALFORMED_PACKET);
    prefetch(&turn);
    owned = tr_find_owned(endpoint, &turn.tuple, turn.hash);
    if (!owned && endpoint->owned.count && names_syn(&key, &turn))
        owned = tr_find_owned(endpoint, &key, tr_hash(endpoint, &key, sizeof key));
    /* In tables and messages these stand for IPv4; on the wire nobody honest has them. */
    if (!owned && turn.view.version == 6 && (tr_is_v4_mapped(turn.view.source) || tr_is_v4_mapped(turn.view.destination)))
        return tr_park(&turn, odd);
    if (turn.view.protocol == TR_UDP)
        return tr_datagram_receive(&turn, owned);
    if (owned)
        return tr_park(&turn, class_of(&turn, owned));
    turn.client = tr_table_find(&endpoint->clients, turn.hash, &turn.tuple);
    turn.server = tr_table_find(&endpoint->servers, turn.hash, &turn.tuple);
    turn.live = tr_table_find(&endpoint->live, turn.hash, &turn.tuple);
    if (packet->hook == TR_APPLICATION)
        application_packet(&turn);
    else
        network_packet(&turn);
}

/* -- the way to Python -- */

/* The tuple of a packet's connection, and the SYN it names; whether it has them. For ICMP errors as for TCP and UDP. */
static bool connection_untrusted(struct tr_turn *turn, bool *has_syn, struct tr_tuple *syn)
{
    enum tr_reason reason;
    bool named;

    *has_syn = false;
    if (!identify_untrusted(turn, &named, &reason) || !named)
        return false;
    *has_syn = names_syn(syn, turn);
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
