/* What the engine remembers; for the engine's own files only. */
#ifndef TRIREME_STATE_H
#define TRIREME_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "message.h"
#include "packet.h"
#include "surplus.h"
#include "table.h"
#include "teach.h"

enum {
    TR_HEADERS = 120, /* IPv4 and TCP with every option; IPv6 without extension headers has 100 */
    TR_NONCES = 64,
    TR_EVENTS = 1024,
    TR_RESUMES = 4, /* unconfirmed ones of one flow; Python takes more */
};

/* Packets of one identity's exchanges that are Python's as a known one's: so many at once, and one for each interval. */
#define TR_SHARE UINT64_C(1024)
#define TR_SHARE_NS (UINT64_C(1000000000) / 200)
#define TR_HALF_OPEN_NS (UINT64_C(70) * 1000000000) /* endpoint.HALF_OPEN_NS */
/* datagram_flows.py, in milliseconds */
#define TR_FLOW_MS 10000
#define TR_WARM_MS 8000
#define TR_TICKET_MS 10000
#define TR_RESUMING_MS 320
#define TR_MS UINT64_C(1000000)

enum { TR_WINDOW = 1024 }; /* replay.WINDOW */

struct tr_token {
    atomic_uint references;
    uint32_t number;
    uint32_t size;
    double not_after;
    uint8_t id[TR_ID_SIZE];
    uint8_t assertion[];
};

/* Packets that a later repetition is made of. */
struct tr_headers {
    uint8_t length;
    uint8_t data[TR_HEADERS];
};

/* handshake.State: the states a warm connection has. The numbers are those of the hand-over. */
enum tr_state {
    TR_SYN_CREATED = 1,
    TR_SYN_ACK_CONSUMED,
    TR_ACK_CREATED,
    TR_SYN_CONSUMED,
    TR_SYN_ACK_CREATED,
};

/* flows.ClientFlow */
struct tr_client {
    struct tr_link link;
    struct tr_tuple tuple;
    enum tr_state state;
    uint32_t isn, server_isn;
    uint32_t policy;   /* that let the answer in */
    uint32_t decision;
    uint8_t reason;
    struct tr_token *local, *peer;
    struct tr_end actual;
    uint64_t proven_ns;
    uint8_t syn_fixed[TR_SYN_FIXED];
    uint8_t syn_ack_fixed[TR_SYN_ACK_FIXED];
    uint8_t proof[TR_PROOF];
    struct tr_headers syn, ack;
};

/* flows.ServerFlow */
struct tr_server {
    struct tr_link link;
    struct tr_tuple tuple;
    enum tr_state state;
    uint32_t isn, server_isn;
    uint16_t answered_port; /* the SYN-ACK's source port: another than the tuple's behind a REDIRECT */
    struct tr_token *local, *peer;
    uint8_t syn_fixed[TR_SYN_FIXED];
    uint8_t syn_ack_fixed[TR_SYN_ACK_FIXED];
    uint8_t key[TR_KEY_SIZE];
    struct tr_headers syn_ack;
};

/* Handed over by their numbers, like tr_state. */
enum tr_stage { TR_RESUMED = 1, TR_RESUME_CONSUMED, TR_PROVEN };

/* datagram_flows.Warm or .Ticket, for one exchange. Held by the tables below, by flows that go on from it, and by Python. */
struct tr_session {
    atomic_uint references;
    uint32_t number;
    bool described; /* exchange is set, and will not change: read under the lock of the one pod it belongs to */
    struct tr_exchange exchange;
    pthread_mutex_t lock; /* of what follows */
    uint64_t used_ns;
    uint64_t highest;                  /* counter given away, or seen */
    uint64_t seen[TR_WINDOW / 64];     /* bit n: highest - n was seen */
};

/* flows that the pod began: datagram_flows.ClientDatagrams */
struct tr_datagram_client {
    struct tr_link link;
    struct tr_tuple tuple;
    enum tr_stage stage;
    bool waits, confirmed;
    uint8_t resumes;
    uint32_t policy; /* that it began under */
    uint64_t began_ns;
    struct tr_session *session;
    struct tr_end actual;
    uint8_t hello_fixed[TR_SYN_FIXED];
    uint8_t proof[TR_PROOF];
    uint8_t resume[TR_RESUMES][TR_RESUME_FIXED];
    struct tr_headers first;
};

/* flows that somebody began with the pod: datagram_flows.ServerDatagrams */
struct tr_datagram_server {
    struct tr_link link;
    struct tr_tuple tuple;
    enum tr_stage stage;
    bool waits;
    uint32_t request;
    struct tr_session *session;
    uint8_t hello_fixed[TR_SYN_FIXED];
    uint8_t confirm[TR_CONFIRM];
};

struct tr_warm {
    struct tr_link link;
    struct tr_end dialled; /* 18 octets */
    bool waits;
    uint32_t policy;
    struct tr_session *session;
};

struct tr_ticket {
    struct tr_link link;
    uint8_t ticket[TR_NONCE_SIZE];
    struct tr_session *session;
};

/* Names a half-open connection by who asks: the pod's SYN-ACK may leave from another port than the SYN asked for. */
struct tr_syn {
    struct tr_link link;
    struct tr_tuple key; /* own and own_port zero; isn set */
    struct tr_server *server;
};

/* flows.Live */
struct tr_live {
    struct tr_link link;
    struct tr_tuple tuple;
    uint8_t direction;
    uint16_t port;
    uint32_t isn, server_isn;
    uint32_t policy;
    struct tr_token *peer;
    uint8_t address[16];
};

struct tr_owned {
    struct tr_link link;
    struct tr_tuple tuple;
    uint32_t references; /* tables of Python's that have it, */
    uint32_t foreign;    /* and those that somebody outside can fill */
    uint32_t pending;    /* packets of it that are on their way to Python and back */
    bool known;          /* what went along was an accepted connection, or one that the pod opens */
    uint8_t peer[TR_ID_SIZE]; /* of a SYN that Python remembers: who asks; zero: somebody without identity */
};

struct tr_peer {
    struct tr_link link;
    uint8_t id[TR_ID_SIZE];
    struct tr_token *token;
    bool known[2];
    uint64_t spent_ns; /* its share of Python's time, up to then (tr_charge) */
    uint8_t keys[2][TR_KEY_SIZE]; /* by direction */
};

struct tr_verdict_key {
    uint8_t address[16];
    uint32_t token;
    uint16_t port;
    uint8_t direction, protocol;
};

struct tr_verdict_entry {
    struct tr_link link;
    struct tr_verdict_key key;
    uint32_t decision;
    uint8_t reason;
    bool anybody;
};

struct tr_target {
    struct tr_link link;
    struct tr_end end; /* 18 octets, no padding */
};

struct tr_engine {
    uint8_t seed[16];
};

struct tr_endpoint {
    const struct tr_engine *engine;
    pthread_mutex_t lock;
    struct tr_mac *mac;
    struct tr_token *identity; /* NULL: none */
    uint32_t policy;
    struct tr_table clients, servers, syns, live, owned, peers, verdicts, targets;
    struct tr_table datagram_clients, datagram_servers, live_datagrams, warm, tickets;
    tr_translate *translate;
    void *translate_context;
    uint32_t nonces;
    uint8_t pool[TR_NONCES][TR_NONCE_SIZE];
    struct tr_counters counters; /* numbers of entries are filled in as they are asked for, but for `proving` */
    bool listening;
    uint32_t first_event, events_waiting;
    struct tr_event *events; /* TR_EVENTS of them, from the first time that somebody listens */
};

/* One packet's turn: everything there is to know before anything is decided. */
struct tr_turn {
    struct tr_endpoint *endpoint;
    const struct tr_packet *packet;
    const struct tr_instant *now;
    struct tr_result *result;
    struct tr_view view;
    struct tr_tuple tuple;
    uint64_t hash;
    struct tr_client *client;
    struct tr_server *server;
    struct tr_live *live;
    struct tr_datagram datagram;
    struct tr_datagram_client *began; /* a UDP flow of ours, or of somebody else's */
    struct tr_datagram_server *asked;
};

/* How a turn ends. */
void tr_pass(struct tr_turn *, enum tr_verdict, uint32_t length);
void tr_accept(struct tr_turn *, uint32_t length);
void tr_drop(struct tr_turn *, enum tr_reason);
void tr_park(struct tr_turn *, enum tr_park);
enum tr_park tr_charge(const struct tr_turn *, struct tr_peer *);
enum tr_park tr_charge_segment(const struct tr_turn *, const uint8_t id[TR_ID_SIZE]);

/* datagram.c: UDP */
void tr_datagram_receive(struct tr_turn *, const struct tr_owned *);
enum tr_park tr_datagram_class(const struct tr_turn *, const struct tr_owned *);
bool tr_datagram_carries(const struct tr_turn *, uint32_t message);

/* datagram_client.c */
void tr_datagram_begin(struct tr_turn *);
void tr_datagram_go_on(struct tr_turn *);
void tr_datagram_confirm(struct tr_turn *);

/* datagram_server.c */
void tr_datagram_resume(struct tr_turn *);
void tr_datagram_reply(struct tr_turn *);
void tr_datagram_proof(struct tr_turn *);

/* session.c */
struct tr_session *tr_session_keep(struct tr_session *);
void tr_session_describe(struct tr_session *, const struct tr_exchange *);

/* client.c */
bool tr_ends_agree(struct tr_turn *, const struct tr_end *server, const struct tr_end *client);
void tr_client_syn(struct tr_turn *);
void tr_client_syn_ack(struct tr_turn *);
void tr_client_segment(struct tr_turn *);

/* server.c */
void tr_server_syn(struct tr_turn *);
void tr_server_syn_ack(struct tr_turn *);
void tr_server_proof(struct tr_turn *);

/* endpoint.c */
uint64_t tr_hash(const struct tr_endpoint *, const void *key, size_t size);
struct tr_owned *tr_find_owned(const struct tr_endpoint *, const struct tr_tuple *, uint64_t hash);
struct tr_syn *tr_find_syn(const struct tr_endpoint *, const struct tr_tuple *key);
void tr_syn_key(struct tr_tuple *key, const uint8_t peer[16], uint16_t port, uint32_t isn);
bool tr_copy_headers(struct tr_headers *, const struct tr_view *);
void tr_forget_client(struct tr_endpoint *, struct tr_client *);
void tr_forget_server(struct tr_endpoint *, struct tr_server *);
void tr_forget_live(struct tr_endpoint *, struct tr_live *);
void tr_forget_datagram_client(struct tr_endpoint *, struct tr_datagram_client *);
void tr_forget_datagram_server(struct tr_endpoint *, struct tr_datagram_server *);
struct tr_table *tr_live_table(struct tr_endpoint *, const struct tr_tuple *);
void tr_remember_live(struct tr_turn *, const struct tr_tuple *, const struct tr_live *);
void tr_announce(struct tr_turn *, const struct tr_live *, uint32_t decision, uint8_t reason);

/* handover.c */
uint32_t tr_hand_over_tuple(struct tr_endpoint *, const struct tr_tuple *, uint8_t *out, bool *known);

/* teach.c */
struct tr_owned *tr_put_owned(struct tr_endpoint *, const struct tr_tuple *);
void tr_put_back(struct tr_endpoint *, const struct tr_tuple *);
struct tr_token *tr_token_keep(struct tr_token *);
struct tr_peer *tr_peer_of(const struct tr_endpoint *, const uint8_t id[TR_ID_SIZE]); /* whatever it says of itself now */
struct tr_peer *tr_find_peer(const struct tr_turn *, const struct tr_message_view *, int direction);
struct tr_verdict_entry *tr_find_verdict(const struct tr_endpoint *, int direction, uint8_t protocol, const struct tr_token *,
                                         const uint8_t address[16], uint16_t port);

/* The connection a packet belongs to, from the pod's point of view. */
static inline void tr_tuple_of(struct tr_tuple *tuple, const struct tr_view *view, bool leaving)
{
    memset(tuple, 0, sizeof *tuple);
    memcpy(tuple->own, leaving ? view->source : view->destination, 16);
    memcpy(tuple->other, leaving ? view->destination : view->source, 16);
    tuple->own_port = leaving ? view->source_port : view->destination_port;
    tuple->other_port = leaving ? view->destination_port : view->source_port;
    tuple->protocol = view->protocol;
}

#endif
