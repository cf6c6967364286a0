/* UDP: which part of the exchange a datagram belongs to (the warm part of datagrams.py). */
#include "octets.h"
#include "state.h"

static bool is_hello(const struct tr_turn *turn, struct tr_message_view *hello)
{
    const struct tr_datagram *datagram = &turn->datagram;
    struct tr_resume_view resume;

    if (tr_read_message_untrusted(hello, TR_MESSAGE_HELLO, datagram->message, datagram->message_size))
        return true;
    if (!tr_read_resume_untrusted(&resume, datagram->message, datagram->message_size))
        return false;
    *hello = resume.hello;
    return true;
}

/* As class_of in engine.c. Claims of identity are plain unless they are of somebody known, within his share: where policy asks nobody they ride on each flow's
 * first datagram, and there are many of those. */
enum tr_park tr_datagram_class(const struct tr_turn *turn, const struct tr_owned *owned)
{
    struct tr_message_view hello;
    struct tr_peer *peer = NULL;

    if (turn->packet->hook == TR_APPLICATION || turn->began || turn->live || (owned && (owned->references || owned->known)))
        return TR_PARK_OWNED;
    if (turn->datagram.message && is_hello(turn, &hello))
        peer = tr_find_peer(turn, &hello, TR_INGRESS);
    return peer && tr_charge(turn, peer) == TR_PARK_KNOWN ? TR_PARK_KNOWN : TR_PARK_PLAIN;
}

/* Whether the datagram can carry a message of so many octets; its own surplus is never touched. */
bool tr_datagram_carries(const struct tr_turn *turn, uint32_t message)
{
    const struct tr_view *view = &turn->view;
    uint32_t size = view->transport + TR_UDP_HEADER + (uint32_t)turn->datagram.payload.size + TR_SURPLUS_OVERHEAD + message;

    return view->captured == view->length && !turn->datagram.surplus && size <= TR_PATH_MTU;
}

static void judge_again(struct tr_turn *turn)
{
    if (turn->live->policy == turn->endpoint->policy)
        return tr_accept(turn, 0);
    tr_park(turn, TR_PARK_OWNED);
}

static void leaving(struct tr_turn *turn)
{
    if (turn->datagram.message)
        return tr_park(turn, TR_PARK_OWNED); /* an agent's own, or a pod's that is up to something */
    if (turn->live)
        return judge_again(turn);
    if (turn->asked)
        return tr_datagram_reply(turn);
    if (turn->began)
        return tr_datagram_go_on(turn);
    tr_datagram_begin(turn);
}

static void arriving(struct tr_turn *turn)
{
    const struct tr_datagram *datagram = &turn->datagram;

    if (!datagram->message) {
        if (turn->live)
            return judge_again(turn);
        return tr_park(turn, tr_datagram_class(turn, NULL));
    }
    if (turn->endpoint->identity && datagram->message_size > TR_HEADER) {
        if (datagram->message[5] == TR_MESSAGE_RESUME)
            return tr_datagram_resume(turn);
        if (datagram->message[5] == TR_MESSAGE_CONFIRM)
            return tr_datagram_confirm(turn);
        if (datagram->message[5] == TR_MESSAGE_PROOF)
            return tr_datagram_proof(turn);
    }
    tr_park(turn, tr_datagram_class(turn, NULL));
}

void tr_datagram_receive(struct tr_turn *turn, const struct tr_owned *owned)
{
    struct tr_endpoint *endpoint = turn->endpoint;
    enum tr_reason reason;

    if (!tr_read_datagram_untrusted(&turn->datagram, &turn->view, &reason))
        return tr_drop(turn, reason);
    if (owned || turn->packet->unsummed)
        return tr_park(turn, tr_datagram_class(turn, owned));
    turn->began = tr_table_find(&endpoint->datagram_clients, turn->hash, &turn->tuple);
    turn->asked = tr_table_find(&endpoint->datagram_servers, turn->hash, &turn->tuple);
    turn->live = tr_table_find(&endpoint->live_datagrams, turn->hash, &turn->tuple);
    if (turn->packet->hook == TR_APPLICATION)
        leaving(turn);
    else
        arriving(turn);
}
