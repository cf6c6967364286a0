/*
 * The identity exchange on the TCP handshake (docs/protocol.md) against an attacker, for Spin.
 * What is modelled, what is not, and the results: README.md beside this file.
 *
 * A is an honest pod: it dials (Client) and listens (Server). S is an honest pod that listens. M is the attacker's own
 * pod, with a valid identity and key, to which A may talk. The network is the attacker: a Client or Server reads any
 * message that the attacker can form at that moment. A message that fails a check is dropped and leaves no state, so
 * only those that pass are steps.
 *
 * The network, by -D on spin's command line:
 *   OFF_PATH    the attacker reads everything but sends from M's sockets only, and what honest pods send to each other
 *               arrives unchanged or not at all. Without it: it drops, alters, diverts, and sends from any source.
 *   MASQUERADE  a router may put its own address before A's and before M's (masquerade, or a NodePort's translation).
 *   EXTERNAL    A may dial an address outside every pod range, which some other node translates to S or to M.
 *   ONE_RUN     A dials once, not twice: smaller, for the larger networks.
 * The protocol, by -DVARIANT=name:
 */
#define CORRECT              0
/* Broken on purpose; the test expects each to be found. */
#define NO_SYN_ACK_MAC       1  /* the client takes a SYN-ACK without looking at its MAC */
#define NO_ADDRESSES         2  /* the MACs do not cover the addresses and ports */
#define NO_CLIENT_NONCE      3  /* ... the client's nonce */
#define NO_SERVER_NONCE      4  /* ... the server's nonce */
#define NO_ROLE_TAG          5  /* the MACs of SYN-ACK and ACK are computed alike */
#define UNORDERED_IDS        6  /* key and MACs do not say which id is the client's */
#define ACCEPT_AT_SYN        7  /* the server delivers without the ACK's proof */
#define NO_DESTINATION_CHECK 8  /* the client ignores the server address that the SYN-ACK names */
#define NO_SOURCE_CHECK      9  /* the client ignores the client address that the SYN-ACK names */
#define NO_PORT_CHECK        10 /* the client compares the server's address, but not its port */
#define EVIDENCE_PER_PAIR    11 /* a translation seen once for (dialled, server) counts for later connections */
#define PROVE_AGAIN          12 /* the client proves a second, different SYN-ACK to the same SYN */
#define KEY_IN_CLEAR         13 /* the SYN-ACK carries the pair key */
/* Stricter than the default. */
#define REFUSE_EXTERNAL      14 /* no evidence about a dialled address outside the pod ranges: refuse */
#define SOURCE_EVIDENCE      15 /* the client's node also shows what the client's own source was translated to */
#ifndef VARIANT
#define VARIANT CORRECT
#endif
#define IS(variant) (VARIANT == variant)

#define NONE 0

/* Identities (the 16-byte ids). */
#define ID_A 1
#define ID_S 2
#define ID_M 3

/* Sockets: an address and a port. */
#define SOCK_A   1 /* A's, from which it dials */
#define SOCK_A2  2 /* A's, on which it listens: the same address, another port */
#define SOCK_S   3 /* S's, the one A means when it dials S */
#define SOCK_S2  4 /* S's, another port */
#define SOCK_M   5 /* M's */
#define SOCK_RA  6 /* the router's address, the port it gave to A's connection */
#define SOCK_RM  7 /* the router's address, the port it gave to M's connection */
#define SOCK_VIP 8 /* a Service: A's own node translates it, and its conntrack shows to what */
#define SOCK_EXT 9 /* outside every pod range, translated elsewhere: no evidence on A's node */

#define IS_A(sock)      (sock == SOCK_A || sock == SOCK_A2)
#define IS_S(sock)      (sock == SOCK_S || sock == SOCK_S2)
#define IS_ROUTER(sock) (sock == SOCK_RA || sock == SOCK_RM)
/* To whose pod the network takes what is sent there. A's agent cannot tell SOCK_RA from SOCK_RM. */
#define HELD_BY_A(sock) (IS_A(sock) || sock == SOCK_RA)

#define CLIENTS 2 /* runs of A as client; run i draws client nonce i + 1 */
#define SERVERS 3 /* 0 and 1: S's; 2: A's; session j draws server nonce j + 1 */
#define NONCE_M 4 /* any nonce of the attacker's own */
#define SELF(j) (j == 2 -> ID_A : ID_S)

typedef Run {
    byte dialled; /* the socket A's application dialled; NONE until then */
    byte backend; /* where the network takes that connection */
    byte id_s;    /* from the SYN-ACK that A accepted, NONE until then: who, */
    byte nonce_s; /*   its nonce, */
    byte at_s;    /*   the server's socket as the server sees it, */
    byte at_c     /*   the client's socket as the server sees it */
};

typedef Session {
    byte id_c;    /* from the SYN, NONE until then: the identity that it claims, */
    byte nonce_c; /*   its nonce, */
    byte at_c;    /*   its source as the network stamped it, */
    byte at_s;    /*   its destination */
    bool accepted
};

Run client[CLIENTS];
Session session[SERVERS];

/* -- MACs ------------------------------------------------------------------------------------------------------------
 * A MAC is the list of what it covers, one decimal digit each. Its key is that of (client id, server id), in this
 * order; both ids are covered, so the digits name the key as well. */

#define TAG_SYN_ACK 1 /* BLAKE2s person "TRM1sack" */
#define TAG_ACK     2 /* BLAKE2s person "TRM1_ack" */

#define UNLESS(variant, digit) (IS(variant) -> 0 : digit)
#define IDS(c, s) (IS(UNORDERED_IDS) && c > s -> 10 * s + c : 10 * c + s)

/* SYN: id_c at offset 12, nonce_c at 28. SYN-ACK: id_s at 12, nonce_s at 28, at_s at 44 and 76, at_c at 60 and 78. */
#define MAC(tag, id_c, nonce_c, id_s, nonce_s, at_s, at_c) \
    (1000000 * UNLESS(NO_ROLE_TAG, tag) + 10000 * IDS(id_c, id_s) + 1000 * UNLESS(NO_CLIENT_NONCE, nonce_c) \
     + 100 * UNLESS(NO_SERVER_NONCE, nonce_s) + UNLESS(NO_ADDRESSES, (10 * at_s + at_c)))

/* -- What the attacker knows -----------------------------------------------------------------------------------------
 * Every id, assertion and address; a nonce once it was sent; the pair keys of M; each MAC that was sent. */

int said[7]; /* 0 to 2: the sessions' SYN-ACK MACs; then two places for each run's ACK MAC */
#define SAID_BY_CLIENT(i, again) (SERVERS + 2 * i + again)

#define KEY_LEAKED(c, s) \
    (IS(KEY_IN_CLEAR) && c == ID_A && s == ID_S && (session[0].id_c == ID_A || session[1].id_c == ID_A))
#define KNOWS_KEY(c, s) (c == ID_M || s == ID_M || KEY_LEAKED(c, s))
#define HEARD(mac) \
    (said[0] == mac || said[1] == mac || said[2] == mac || said[3] == mac || said[4] == mac || said[5] == mac \
     || said[6] == mac)
#define CAN_SEND_MAC(tag, id_c, nonce_c, id_s, nonce_s, at_s, at_c) \
    (KNOWS_KEY(id_c, id_s) || HEARD(MAC(tag, id_c, nonce_c, id_s, nonce_s, at_s, at_c)))

/* -- What the network lets through --------------------------------------------------------------------------------- */

#ifdef OFF_PATH
/* From M's sockets anything; from A's only the SYN that A sent there. */
#define SYN_ARRIVES(id_c, n, at_c, at_s) \
    (at_c == SOCK_M || at_c == SOCK_RM \
     || (HELD_BY_A(at_c) && id_c == ID_A && n <= CLIENTS && client[(n - 1) % CLIENTS].backend == at_s))
/* Anything if A's connection leads to M; otherwise what the session at its other end sent to A. */
#define SENDER(n) session[(n - 1) % SERVERS]
#define SYN_ACK_ARRIVES(i, n, s, c) \
    (client[i].backend == SOCK_M \
     || (n <= SERVERS && HELD_BY_A(SENDER(n).at_c) && SENDER(n).nonce_c == i + 1 \
         && SENDER(n).at_s == client[i].backend && SENDER(n).at_s == s && SENDER(n).at_c == c))
#else
#define SYN_ARRIVES(id_c, n, at_c, at_s) true
#define SYN_ACK_ARRIVES(i, n, s, c) true
#endif

/* -- The client's checks on an authentic SYN-ACK (guarantee "no relay") -------------------------------------------- */

/* A pod's address leads to that pod, so there dialled == backend. For a Service, A's agent reads `backend` in its
 * node's conntrack entry of this very connection. For SOCK_EXT there is nothing to compare with. */
#define SAME_SERVER(x, y) (x == y || (IS(NO_PORT_CHECK) && ((IS_A(x) && IS_A(y)) || (IS_S(x) && IS_S(y)))))
#define DESTINATION_OK(i, at_s) \
    (IS(NO_DESTINATION_CHECK) || (client[i].dialled == SOCK_EXT && !IS(REFUSE_EXTERNAL)) \
     || (client[i].dialled != SOCK_EXT && SAME_SERVER(at_s, client[i].backend)) \
     || (IS(EVIDENCE_PER_PAIR) && client[i].dialled == SOCK_VIP && at_s == SOCK_S))

/* A's own address, or nobody's pod address. */
#define SOURCE_OK(at_c) \
    (IS(NO_SOURCE_CHECK) || (IS(SOURCE_EVIDENCE) -> HELD_BY_A(at_c) : IS_A(at_c) || IS_ROUTER(at_c)))

/* -- The properties, checked at each accept of an honest peer's identity (README.md says them in words) ------------ */

bool agree_on_run, agree_on_addresses, endpoint_is_the_peers, one_accept_per_run, key_is_secret;

inline check() {
    assert(key_is_secret);
    assert(agree_on_run);
    assert(endpoint_is_the_peers);
    assert(agree_on_addresses);
    assert(one_accept_per_run);
    agree_on_run = false; /* always the same outside this step, so that they add no states */
    endpoint_is_the_peers = false;
    agree_on_addresses = false;
    one_accept_per_run = false;
    key_is_secret = false
}

/* Run i of A has just accepted client[i].id_s. J: the session whose nonce the SYN-ACK bears. */
#define J (client[i].nonce_s - 1)
inline check_client_accept() {
    agree_on_run = client[i].nonce_s <= SERVERS && SELF(J) == client[i].id_s &&
                   session[J].id_c == ID_A && session[J].nonce_c == i + 1;
    endpoint_is_the_peers = agree_on_run && session[J].at_s == client[i].backend && HELD_BY_A(session[J].at_c);
    agree_on_addresses = agree_on_run && session[J].at_s == client[i].at_s && session[J].at_c == client[i].at_c;
    one_accept_per_run = !(client[1 - i].id_s == client[i].id_s && client[1 - i].nonce_s == client[i].nonce_s);
    key_is_secret = !KNOWS_KEY(ID_A, client[i].id_s);
    check()
}

/* The server of session j has just accepted session[j].id_c. I: the run whose nonce the SYN bore. */
#define I (session[j].nonce_c - 1)
#define ALSO(k) (k != j && session[k].accepted && session[k].id_c == session[j].id_c && session[k].nonce_c == I + 1)
inline check_server_accept() {
    agree_on_run = session[j].id_c == ID_A && session[j].nonce_c <= CLIENTS &&
                   client[I].id_s == SELF(j) && client[I].nonce_s == j + 1;
    endpoint_is_the_peers = agree_on_run && HELD_BY_A(session[j].at_c) && client[I].backend == session[j].at_s;
    agree_on_addresses = agree_on_run && client[I].at_s == session[j].at_s && client[I].at_c == session[j].at_c;
    one_accept_per_run = !(ALSO(0) || ALSO(1) || ALSO(2));
    key_is_secret = !KNOWS_KEY(session[j].id_c, SELF(j));
#ifdef HONEST_DIALLED /* not vacuous: "no honest exchange completes" must be found false */
    assert(!(agree_on_addresses && endpoint_is_the_peers &&
             client[I].dialled == HONEST_DIALLED && session[j].at_c == HONEST_SOURCE));
#endif
    check()
}

/* -- The two roles ------------------------------------------------------------------------------------------------- */

inline any_client_socket(sock) {
    if
    :: sock = SOCK_A
    :: sock = SOCK_M
#ifdef MASQUERADE
    :: sock = SOCK_RA
    :: sock = SOCK_RM
#endif
    fi
}

/* A's application dials and the agent sends SYN: ID_A, nonce i + 1. All runs dial at the start: the attacker, who may
 * hold any message back, gains nothing from a later one. */
inline dial(i) {
    if
    :: client[i].dialled = SOCK_S;   client[i].backend = SOCK_S
    :: client[i].dialled = SOCK_M;   client[i].backend = SOCK_M
    :: client[i].dialled = SOCK_VIP; client[i].backend = SOCK_S
    :: client[i].dialled = SOCK_VIP; client[i].backend = SOCK_M
    :: client[i].dialled = SOCK_VIP; client[i].backend = SOCK_A2 /* its own Service */
#ifdef EXTERNAL
    :: client[i].dialled = SOCK_EXT; client[i].backend = SOCK_S
    :: client[i].dialled = SOCK_EXT; client[i].backend = SOCK_M
#endif
    fi
}

proctype Client(byte i) {
    byte id_s, nonce_s, at_s, at_c;
    bool again;

receive_syn_ack: /* whatever the attacker or an honest server can send with its MAC */
    atomic {
        if
        :: id_s = ID_A
        :: id_s = ID_S
        :: !again -> client[i].id_s = ID_M; goto done /* M in its own name: nothing to protect, nothing to learn */
        fi;
        if
        :: session[0].id_c != NONE -> nonce_s = 1
        :: session[1].id_c != NONE -> nonce_s = 2
        :: session[2].id_c != NONE -> nonce_s = 3
        :: nonce_s = NONCE_M
        fi;
        if
        :: at_s = SOCK_A2
        :: at_s = SOCK_S
        :: at_s = SOCK_S2
        :: at_s = SOCK_M
        fi;
        any_client_socket(at_c);
        if
        :: SYN_ACK_ARRIVES(i, nonce_s, at_s, at_c) && DESTINATION_OK(i, at_s) && SOURCE_OK(at_c) &&
           (IS(NO_SYN_ACK_MAC) || CAN_SEND_MAC(TAG_SYN_ACK, ID_A, (i + 1), id_s, nonce_s, at_s, at_c)) ->
            /* Accept the server, and prove: the ACK's MAC goes out. */
            client[i].id_s = id_s;
            client[i].nonce_s = nonce_s;
            client[i].at_s = at_s;
            client[i].at_c = at_c;
            said[SAID_BY_CLIENT(i, again)] = MAC(TAG_ACK, ID_A, (i + 1), id_s, nonce_s, at_s, at_c);
            check_client_accept();
            id_s = NONE; nonce_s = NONE; at_s = NONE; at_c = NONE;
            if
            :: IS(PROVE_AGAIN) && !again -> again = true; goto receive_syn_ack
            :: else -> goto done
            fi
        :: else ->
            id_s = NONE; nonce_s = NONE; at_s = NONE; at_c = NONE;
            goto receive_syn_ack
        fi
    }
done: skip
}

proctype Server(byte j) {
    byte id_c, nonce_c, at_c, at_s;

receive_syn: /* any SYN at all; its source is what the network stamped */
    atomic {
        j != 1 || session[0].id_c != NONE; /* S's sessions are alike: 0 goes first */
        if
        :: id_c = ID_A
        :: id_c = ID_S
        :: session[j].id_c = ID_M; goto done /* M in its own name: nothing to protect, nothing to learn */
        fi;
        if
        :: nonce_c = 1
#ifndef ONE_RUN
        :: nonce_c = 2
#endif
        :: nonce_c = NONCE_M
        fi;
        any_client_socket(at_c);
        if
        :: j == 2 -> at_s = SOCK_A2
        :: j != 2 -> at_s = SOCK_S
        :: j != 2 -> at_s = SOCK_S2
        fi;
        if
        :: SYN_ARRIVES(id_c, nonce_c, at_c, at_s) ->
            /* Answer with SYN-ACK: SELF(j), nonce j + 1, both sockets as this side sees them, and the MAC. */
            session[j].id_c = id_c;
            session[j].nonce_c = nonce_c;
            session[j].at_c = at_c;
            session[j].at_s = at_s;
            said[j] = MAC(TAG_SYN_ACK, id_c, nonce_c, SELF(j), (j + 1), at_s, at_c);
            id_c = NONE; nonce_c = NONE; at_c = NONE; at_s = NONE
        :: else ->
            id_c = NONE; nonce_c = NONE; at_c = NONE; at_s = NONE;
            goto receive_syn
        fi
    }
    /* Deliver nothing before the ACK's proof: a MAC over this session's own transcript. */
    atomic {
        IS(ACCEPT_AT_SYN) || CAN_SEND_MAC(TAG_ACK, session[j].id_c, session[j].nonce_c, SELF(j), (j + 1),
                                          session[j].at_s, session[j].at_c);
        session[j].accepted = true;
        check_server_accept()
    }
done: skip
}

init {
    atomic {
        dial(0);
#ifndef ONE_RUN
        dial(1);
        client[0].dialled <= client[1].dialled; /* the runs are alike: half of the pairs will do */
        run Client(1);
#endif
        run Client(0);
        run Server(0);
        run Server(1);
        run Server(2)
    }
}
