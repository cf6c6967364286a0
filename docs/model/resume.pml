/*
 * RESUME, CONFIRM and PROOF on UDP (docs/udp.md) against an attacker, for Spin.
 * What is modelled, what is not, and the results: README.md beside this file.
 *
 * A is an honest client, S an honest server; they have completed the exchange of exchange.pml a moment ago, and S holds
 * the ticket, A what belongs to it. M is the attacker's own pod. A now begins two flows to the Service behind which S
 * and M both are, and sends each datagram with RESUME until the flow is confirmed. The network is the attacker: a step
 * reads any message that the attacker can form at that moment. A message that fails a check is dropped and leaves no
 * state, so only those that pass are steps.
 *
 * The network, by -D on spin's command line:
 *   OFF_PATH    the attacker reads everything but sends from M's sockets only, and what honest pods send to each other
 *               arrives unchanged or not at all. Without it: it drops, alters, diverts, and sends from any source.
 *   MASQUERADE  a router may put its own address before A's flows, and before M's.
 *   MOVES       the node may translate a flow of A's to another pod while it lives.
 *   ANSWERS     check also that S answers to A's sockets only.
 * The protocol, by -DVARIANT=name:
 */
#define CORRECT              0
/* Broken on purpose; the test expects each to be found. */
#define NO_PAYLOAD           1  /* the payload is not under RESUME's MAC */
#define NO_WINDOW            2  /* the server does not remember counters */
#define NO_CLIENT_ADDRESS    3  /* the server takes a RESUME from any address */
#define MARK_ON_RESUME       4  /* the server marks the flow without a PROOF */
#define NO_CONFIRM           5  /* the client takes any answer */
#define NO_DATAGRAM          6  /* the CONFIRM's MAC covers neither RESUME nor HELLO */
#define NO_DESTINATION_CHECK 7  /* the client ignores the server's end that the CONFIRM names */
#define NO_ENDS_IN_PROOF     8  /* the PROOF does not cover the ends of the CONFIRM */
#define NO_PORT_IN_PROOF     9  /* the PROOF covers the client's address there, but not its port */
/* Less than specified, and yet nothing is found: the check is there for the ticket's sake as well. */
#define NO_SOURCE_CHECK      10 /* the client ignores the client's end that the CONFIRM names */
#ifndef VARIANT
#define VARIANT CORRECT
#endif
#define IS(variant) (VARIANT == variant)

#define NONE 0

/* Sockets as S sees them: an address and a port. */
#define SOCK_A   1 /* A's, flow 0 */
#define SOCK_A1  2 /* A's, flow 1 */
#define SOCK_R   3 /* the router's address, the port it gave to A's flow 0 */
#define SOCK_R1  4 /* ... to flow 1 */
#define SOCK_RM  5 /* ... to a flow of M's */
#define SOCK_M   6 /* M's */
#define SOCKETS  7

#define ADDRESS_A 1
#define ADDRESS_R 2
#define ADDRESS_M 3
#define ADDRESS(sock) (sock <= SOCK_A1 -> ADDRESS_A : (sock <= SOCK_RM -> ADDRESS_R : ADDRESS_M))
#define HELD_BY_A(sock) (sock >= SOCK_A && sock <= SOCK_R1)

#define FLOWS     2
#define DATAGRAMS 2 /* of each flow, with RESUME */
/* Flow f draws HELLO nonce f + 1. Its datagrams have counters 2f + 1 and 2f + 2 and as payload the same number. */
#define COUNTERS 5
#define FLOW_OF(counter) ((counter - 1) / DATAGRAMS)
#define FORGED 0 /* a payload that A never sent */

typedef Flow {
    bool to_m;       /* whether the node translates it to M now */
    byte sent;       /* datagrams with RESUME */
    byte confirmed   /* A's socket in the CONFIRM that was accepted, NONE until then; the PROOF is for it */
};

typedef Session {
    byte nonce;      /* of the HELLO in the last RESUME from this socket, NONE without one */
    bool marked      /* its datagrams are A's from here on, and are delivered as they come */
};

Flow flow[FLOWS];
Session session[SOCKETS]; /* S's, by the client's socket */
byte ticket_client;       /* the ticket's client address: A's, or the router's */

/* -- What was said -----------------------------------------------------------------------------------------------------
 * Nobody but A and S has the key, so the attacker can send a MAC only if it was sent before. Each bit is one MAC. */

byte said_resume;            /* bit c: RESUME(ticket, c, HELLO of FLOW_OF(c), S's end, ticket_client, payload c) */
byte said_confirm[COUNTERS]; /* [c], bit s: CONFIRM(ticket, c, HELLO of FLOW_OF(c), S's end, socket s) */
#define SAID(bits, n) ((bits >> n) & 1)
/* PROOF(HELLO of f, ticket, S's end, socket s): A says one for each flow. */
#define SAID_PROOF(f, s) \
    (flow[f].confirmed != NONE && (flow[f].confirmed == s || IS(NO_ENDS_IN_PROOF) \
     || (IS(NO_PORT_IN_PROOF) && ADDRESS(flow[f].confirmed) == ADDRESS(s))))

byte delivered; /* bit c: S's pod has read A's datagram c */

/* -- What the network lets through ----------------------------------------------------------------------------------- */

#define STAMP(f) (ticket_client == ADDRESS_A -> SOCK_A + f : SOCK_R + f)
#ifdef OFF_PATH
/* From M's sockets anything, from A's what A sent on that flow if it leads to S. */
#define RESUME_ARRIVES(c, s) (s == SOCK_M || s == SOCK_RM || (s == STAMP(FLOW_OF(c)) && !flow[FLOW_OF(c)].to_m))
#define PROOF_ARRIVES(f, s) (s == SOCK_M || s == SOCK_RM || (s == STAMP(f) && !flow[f].to_m))
#define CONFIRM_ARRIVES(f, s) (flow[f].to_m || s == STAMP(f))
#define ALTERED(s) (s == SOCK_M || s == SOCK_RM)
#else
#define RESUME_ARRIVES(c, s) true
#define PROOF_ARRIVES(f, s) true
#define CONFIRM_ARRIVES(f, s) true
#define ALTERED(s) true
#endif
/* -- The properties (README.md says them in words) ---------------------------------------------------------------- */

bool payload_is_the_clients, delivered_once, answer_goes_to_the_client, agree_on_datagram, endpoint_is_the_peers,
     plain_goes_to_the_server;

inline any_socket(s) {
    if
    :: s = SOCK_A
    :: s = SOCK_A1
#ifdef MASQUERADE
    :: s = SOCK_R
    :: s = SOCK_R1
    :: s = SOCK_RM
#endif
    :: s = SOCK_M
    fi
}

inline any_counter(c) {
    if
    :: c = 1
    :: c = 2
    :: c = 3
    :: c = 4
    fi
}

/* -- A's agent -------------------------------------------------------------------------------------------------------- */

proctype Client(byte f) {
    byte c, s;

    do
    :: atomic { /* A datagram leaves with RESUME. */
        flow[f].confirmed == NONE && flow[f].sent < DATAGRAMS ->
        flow[f].sent++;
        said_resume = said_resume | (1 << (DATAGRAMS * f + flow[f].sent))
    }
    :: atomic { /* An answer with CONFIRM comes: accept the server, and prove. */
        flow[f].confirmed == NONE && flow[f].sent > 0 ->
        any_counter(c);
        any_socket(s);
        if
        :: CONFIRM_ARRIVES(f, s) && (IS(NO_CONFIRM) || SAID(said_confirm[c], s)) &&
           ((FLOW_OF(c) == f && SAID(said_resume, c)) || IS(NO_DATAGRAM)) &&
           (!flow[f].to_m || IS(NO_DESTINATION_CHECK)) && /* S named itself; the node's conntrack shows the same */
           (ADDRESS(s) != ADDRESS_M || IS(NO_SOURCE_CHECK)) ->
            agree_on_datagram = FLOW_OF(c) == f && SAID(delivered, c);
            endpoint_is_the_peers = !flow[f].to_m && HELD_BY_A(s);
            assert(agree_on_datagram);
            assert(endpoint_is_the_peers);
            agree_on_datagram = false; /* always the same outside this step, so that they add no states */
            endpoint_is_the_peers = false;
            flow[f].confirmed = s
        :: else
        fi;
        c = NONE; s = NONE
    }
    :: atomic { /* The flow goes on: a datagram leaves as it is, and nobody looks any more. */
        flow[f].confirmed != NONE ->
        plain_goes_to_the_server = !flow[f].to_m;
        assert(plain_goes_to_the_server);
        plain_goes_to_the_server = false;
        break
    }
    od
}

#ifdef MOVES
proctype Node(byte f) {
    flow[f].to_m = !flow[f].to_m
}
#endif

/* -- S's agent -------------------------------------------------------------------------------------------------------- */

inline mark() {
    endpoint_is_the_peers = HELD_BY_A(s) && !flow[session[s].nonce - 1].to_m;
    /* MARK_ON_RESUME marks honest flows early, too; what is to be found is whose. */
    agree_on_datagram = flow[session[s].nonce - 1].confirmed == s || IS(MARK_ON_RESUME);
#ifdef HONEST /* not vacuous: "no honest flow is ever marked" must be found false */
    assert(!(endpoint_is_the_peers && agree_on_datagram && s == HONEST));
#endif
    assert(endpoint_is_the_peers);
    assert(agree_on_datagram);
    endpoint_is_the_peers = false;
    agree_on_datagram = false;
    session[s].marked = true
}

active proctype Server() {
    byte c, s, payload;

    do
    :: atomic { /* A datagram with RESUME. */
        said_resume != 0 ->
        any_counter(c);
        any_socket(s);
        payload = c;
        if
        :: true
        :: IS(NO_PAYLOAD) && ALTERED(s) -> payload = FORGED
        fi;
        if
        :: SAID(said_resume, c) && RESUME_ARRIVES(c, s) && (ADDRESS(s) == ticket_client || IS(NO_CLIENT_ADDRESS)) &&
           (!SAID(delivered, c) || IS(NO_WINDOW)) ->
            payload_is_the_clients = payload == c;
            delivered_once = !SAID(delivered, c);
            answer_goes_to_the_client = HELD_BY_A(s);
            assert(payload_is_the_clients);
            assert(delivered_once);
#ifdef ANSWERS
            assert(answer_goes_to_the_client);
#endif
            payload_is_the_clients = false;
            delivered_once = false;
            answer_goes_to_the_client = false;
            delivered = delivered | (1 << c);
            if
            :: session[s].nonce != FLOW_OF(c) + 1 -> session[s].nonce = FLOW_OF(c) + 1; session[s].marked = false
            :: else
            fi;
            said_confirm[c] = said_confirm[c] | (1 << s); /* with the answer of S's pod */
            if
            :: IS(MARK_ON_RESUME) -> mark()
            :: else
            fi
        :: else
        fi;
        c = NONE; s = NONE; payload = NONE
    }
    :: atomic { /* A PROOF for what was confirmed on this session. */
        any_socket(s);
        if
        :: session[s].nonce != NONE && !session[s].marked && PROOF_ARRIVES(session[s].nonce - 1, s) &&
           SAID_PROOF(session[s].nonce - 1, s) -> mark()
        :: else
        fi;
        s = NONE
    }
    od
}

init {
    atomic {
        ticket_client = ADDRESS_A;
#ifdef MASQUERADE
        if
        :: true
        :: ticket_client = ADDRESS_R
        fi;
#endif
        if
        :: true
        :: flow[0].to_m = true
        :: flow[1].to_m = true
        :: flow[0].to_m = true; flow[1].to_m = true
        fi;
#ifdef MOVES
        run Node(0);
        run Node(1);
#endif
        run Client(0);
        run Client(1)
    }
}
