/* What Python teaches the engine, and what it gets back: the half of the engine that module.c binds.
 * All functions want the endpoint's lock held, tokens apart. */
#ifndef TRIREME_TEACH_H
#define TRIREME_TEACH_H

#include "engine.h"

enum { TR_INGRESS = 0, TR_EGRESS = 1 }; /* model.Direction */

/* A connection as the pod's namespace sees it. Also a key: no padding. */
struct tr_tuple {
    uint8_t own[16], other[16];
    uint16_t own_port, other_port; /* host order */
    uint32_t protocol;             /* TCP or UDP */
    uint32_t isn_or_zero;          /* of the SYN, in keys of struct tr_endpoint.syns and of owned SYNs; otherwise zero */
};

/* An assertion, of a local pod or of a verified peer. Counted references; any thread. */
struct tr_token;
struct tr_token *tr_token_new(uint32_t number, const uint8_t id[TR_ID_SIZE], const uint8_t *assertion, uint32_t size,
                              double not_after); /* Unix seconds, clock skew included; NULL without memory */
void tr_token_release(struct tr_token *);
uint32_t tr_token_references(const struct tr_token *);

/* Policies have numbers, counted up from 1; what was accepted under another than the current one is handed over. */
uint32_t tr_teach_policy(struct tr_endpoint *);                       /* forgets verdicts and targets; returns the new number */
void tr_teach_identity(struct tr_endpoint *, struct tr_token *or_none); /* forgets the peers' keys: they were the old identity's */

/* All return false when the identity or policy they were learned under is not the current one any more. */
struct tr_lesson {
    uint8_t direction;    /* TR_EGRESS: the pod is the client */
    uint8_t reason;       /* number of the decision's model.Reason */
    uint8_t protocol;     /* TCP or UDP */
    bool anybody;         /* of UDP on ingress: policy would have let in whoever it was, so nobody waits */
    uint16_t port;        /* as policy judged it: the destination's own */
    uint32_t policy;      /* under which it was judged */
    uint32_t decision;    /* Python's number for it, given back with events */
    uint8_t address[16];  /* the peer's, as policy judged it */
    uint8_t key[TR_KEY_SIZE]; /* the pair key in these roles */
};
bool tr_teach(struct tr_endpoint *, struct tr_token *peer, const struct tr_token *local, const struct tr_lesson *);

/* The counter of a client's RESUMEs, or the window of those that a server has seen. There is one for each exchange, and Python counts by the same one.
 * Counted references; any thread. */
struct tr_session;
struct tr_session *tr_session_new(uint32_t number); /* NULL without memory */
void tr_session_release(struct tr_session *);
uint32_t tr_session_references(const struct tr_session *);
uint64_t tr_session_take(struct tr_session *);                     /* the next counter, from 1 */
bool tr_session_is_fresh(struct tr_session *, uint64_t counter);  /* replay.ReplayWindow */
bool tr_session_commit(struct tr_session *, uint64_t counter);    /* whether it was fresh; it is not any more */
void tr_session_touch(struct tr_session *, uint64_t mono_ns);      /* it was used */
uint64_t tr_session_used(struct tr_session *);

/* What an exchange has left behind. The first lesson about a session says what it is for; the later ones must say the same. */
struct tr_exchange {
    struct tr_token *local, *peer;
    uint8_t ticket[TR_NONCE_SIZE];
    uint8_t key[TR_KEY_SIZE];
    struct tr_end server;         /* the server's own end, as it authenticated it */
    uint8_t client[16];           /* the client's address as that server saw it */
    double not_before, not_after; /* Unix seconds between which it may be used */
};
/* A server that was identified at `dialled`: flows there may go on from that. `waits`: nothing may leave before the server has confirmed. Returns whether the
 * policy is still the current one. */
bool tr_teach_warm(struct tr_endpoint *, const struct tr_end *dialled, struct tr_session *, const struct tr_exchange *, uint32_t policy,
                   bool waits);
void tr_forget_warm(struct tr_endpoint *, const struct tr_end *dialled);
/* A client that has proved itself, by the ticket. */
void tr_teach_ticket(struct tr_endpoint *, struct tr_session *, const struct tr_exchange *);
void tr_forget_ticket(struct tr_endpoint *, const uint8_t ticket[TR_NONCE_SIZE]);

/* A destination that takes tokens and may be dialled; the pod's SYNs to any other are parked. */
void tr_teach_target(struct tr_endpoint *, const struct tr_end *);
void tr_forget_target(struct tr_endpoint *, const struct tr_end *);

/* Python remembers something of this connection, or of this SYN (own: zero): its packets are parked. Counted. `foreign`: somebody outside has begun it and has
 * proved nothing, so its packets are worth no more than others. */
void tr_own(struct tr_endpoint *, const struct tr_tuple *, bool foreign);
void tr_own_syn(struct tr_endpoint *, const struct tr_tuple *, const uint8_t peer[TR_ID_SIZE]); /* of an identity: what proves it is known by that */
void tr_disown(struct tr_endpoint *, const struct tr_tuple *, bool foreign);

/* Python gives back an accepted connection of TCP that it has nothing more to do for: the octets are those that tr_engine_hand_over would write of it,
 * where the pod has opened it with that flow, which has sent its proof as local; where not, or where Python has forgotten that flow, local is
 * NULL. False, and nothing has changed, while packets of it are on their way to Python. Python forgets it afterwards: until then it owns it. */
bool tr_take_back(struct tr_endpoint *, const uint8_t *octets, uint32_t size, struct tr_token *local_or_none, struct tr_token *peer,
                  uint64_t mono_ns);

/* Accepted connections. forget: whether there was one. */
uint32_t tr_live_tuples(const struct tr_endpoint *, struct tr_tuple *out, uint32_t room);
bool tr_live_forget(struct tr_endpoint *, const struct tr_tuple *);

/* What was accepted, for whoever listens. Taking an event gives its token's reference to the caller. */
struct tr_event {
    struct tr_tuple tuple;
    struct tr_token *peer;
    double wall_s;
    uint32_t decision;
    uint32_t token; /* the peer's number */
    uint8_t direction, reason;
    uint8_t address[16]; /* as policy judged it */
    uint16_t port;
};
/* A bounded number of events waits to be taken; the oldest makes room. */
bool tr_listen(struct tr_endpoint *, bool); /* false without memory */
bool tr_take_event(struct tr_endpoint *, struct tr_event *);

/* Write one flow after another as tr_engine_hand_over does. Returns the octets; 0: no more. Nothing else may change in between. */
struct tr_cursor {
    uint32_t table;
    const void *entry;
};
uint32_t tr_export(struct tr_endpoint *, struct tr_cursor *zeroed_first, bool forget, uint8_t out[TR_HANDOVER]);

#endif
