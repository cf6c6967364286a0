/* What Python teaches the engine, and what it gets back: the half of the engine that module.c binds.
 * All functions want the endpoint's lock held, tokens apart. */
#ifndef TRIREME_TEACH_H
#define TRIREME_TEACH_H

#include "engine.h"

enum { TR_INGRESS = 0, TR_EGRESS = 1 }; /* model.Direction */

/* A connection as the pod's namespace sees it. Also a key: no padding, and zero behind the ports. */
struct tr_tuple {
    uint8_t own[16], other[16];
    uint16_t own_port, other_port; /* host order */
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
    uint16_t port;        /* as policy judged it: the destination's own */
    uint32_t policy;      /* under which it was judged */
    uint32_t decision;    /* Python's number for it, given back with events */
    uint8_t address[16];  /* the peer's, as policy judged it */
    uint8_t key[TR_KEY_SIZE]; /* the pair key in these roles */
};
bool tr_teach(struct tr_endpoint *, struct tr_token *peer, const struct tr_token *local, const struct tr_lesson *);

/* A destination that takes tokens and may be dialled; the pod's SYNs to any other are parked. */
void tr_teach_target(struct tr_endpoint *, const struct tr_end *);
void tr_forget_target(struct tr_endpoint *, const struct tr_end *);

/* Python remembers something of this connection, or of this SYN (own: zero): its packets are parked. Counted. */
void tr_own(struct tr_endpoint *, const struct tr_tuple *);
void tr_disown(struct tr_endpoint *, const struct tr_tuple *);

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
