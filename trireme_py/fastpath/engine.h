/* The fast path's engine: one packet in, one result out (docs/fastpath.md).
 *
 * It handles the packets of warm TCP connections from SYN to mark, and of UDP flows that go on from an exchange of a moment ago: the local
 * identity, the peer, the key between the two and the verdict are all known, and nothing unusual happens. Everything else it parks: the packet goes to the Python data path,
 * with all that the engine knew of its connection, and Python finishes it. What Python accepted it teaches the engine.
 *
 * No I/O, no clock, no randomness, no thread: time and entropy are arguments. Nothing is allocated once an endpoint is
 * there, but when something is taught. All octets of addresses, ports and packets are in network order unless said otherwise.
 */
#ifndef TRIREME_ENGINE_H
#define TRIREME_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TR_ID_SIZE = 16,
    TR_NONCE_SIZE = 16,
    TR_KEY_SIZE = 32,
    TR_MAX_ASSERTION = 1084, /* wire.MAX_ASSERTION */
    TR_PATH_MTU = 1280,      /* wire.PATH_MTU: no packet that carries a message of ours is larger */
    TR_VERDICT_REASONS = 9,  /* how many model.Reason has */
    TR_ROOM = TR_PATH_MTU,   /* a result's packet is at most as long as the packet that came, or this */
};

enum tr_hook { TR_NETWORK = 0, TR_APPLICATION = 1 }; /* model.Hook */

enum tr_verdict { TR_PASS, TR_PASS_CLEAR, TR_ACCEPT, TR_DROP, TR_PARK };

/* model.DropReason, in its order (a test compares them). */
enum tr_reason {
    TR_MALFORMED_PACKET,
    TR_BAD_CHECKSUM,
    TR_FRAGMENT,
    TR_MALFORMED_MESSAGE,
    TR_VERSION,
    TR_MALFORMED_ASSERTION,
    TR_BAD_SIGNATURE,
    TR_TRUST_DOMAIN,
    TR_EXPIRED,
    TR_NOT_YET_VALID,
    TR_UNKNOWN_SIGNER,
    TR_RATE_LIMITED,
    TR_BAD_MAC,
    TR_RELAYED,
    TR_NO_STATE,
    TR_UNPROVEN,
    TR_REPEATED,
    TR_UNEXPECTED,
    TR_PAYLOAD_ACKNOWLEDGED,
    TR_UNEXPLAINED_TRANSLATION,
    TR_SIMULTANEOUS_OPEN,
    TR_REPLAYED,
    TR_CONSUMED,
    TR_POLICY,
    TR_CUT,
    TR_HOLD_LIMIT,
    TR_HOLD_TIMEOUT,
    TR_TABLE_FULL,
    TR_INTERNAL_ERROR,
    TR_NOT_READY,
    TR_REASONS
};

/* Why a packet was parked: which queue to Python it belongs in. None of them may push out one of an earlier class. */
enum tr_park {
    TR_PARK_OWNED,    /* its connection is known, to the engine or to Python, or the pod itself sent it */
    TR_PARK_KNOWN,    /* a SYN, or a HELLO of UDP, of an identity that is known, but something else is not (or policy refuses it), and what
                       * comes behind its SYN; in its share */
    TR_PARK_PLAIN,    /* from the network, of no known connection, without a message of ours, or beyond the share; of UDP all others */
    TR_PARK_STRANGER, /* from the network, of no known connection, with a message of somebody unknown, or of one who has had his share */
    TR_PARK_ENTROPY,  /* the pool is empty: fill it (tr_engine_add_entropy) and offer the same packet again */
    TR_PARKS
};

struct tr_instant {
    uint64_t mono_ns; /* monotonic, for lifetimes of table entries */
    double wall_s;    /* Unix seconds, for the validity of assertions and the time of events */
};

struct tr_packet {
    const uint8_t *data;
    uint32_t captured; /* octets at data; its IP header may say that it has more */
    enum tr_hook hook;
    bool more;    /* a later packet of the same connection waits already (datapath.Turn.more) */
    bool unsummed; /* the kernel has not filled in the transport checksum yet (NFQA_SKB_CSUMNOTREADY), or has verified it */
    uint8_t *out;  /* where a rewritten packet may be put; must not overlap data */
    uint32_t room; /* at least max(captured, TR_ROOM), or whatever would be rewritten is parked */
};

struct tr_result {
    enum tr_verdict verdict;
    enum tr_reason reason; /* of a DROP; it is counted already */
    enum tr_park park;     /* of a PARK; nothing has changed yet, see tr_engine_hand_over */
    bool deferred;         /* of a PASS: it would be an ACCEPT but for tr_packet.more */
    uint32_t length;       /* octets at tr_packet.out to let through instead; 0: let it through as it is */
};

struct tr_engine;   /* what all endpoints share: assertions */
struct tr_endpoint; /* one pod */

/* -- life: any thread; NULL when there is no memory, or for numbers out of range -- */

struct tr_engine *tr_engine_new(const uint8_t seed[16]); /* random: keys the hash tables against chosen collisions */
void tr_engine_free(struct tr_engine *);                 /* after all its endpoints */

/* Sizes are powers of two. The memory is reserved here and becomes resident as it is used. */
struct tr_sizes {
    uint32_t half_open; /* endpoint.MAX_HALF_OPEN, per role */
    uint32_t live;      /* endpoint.MAX_LIVE */
    uint32_t peers;     /* identities known to this pod */
    uint32_t verdicts;
    uint32_t owned;          /* connections that Python owns */
    uint32_t datagrams;      /* datagram_flows.MAX_FLOWS, per role; as many servers to go on with, and tickets */
    uint32_t live_datagrams; /* endpoint.MAX_LIVE_DATAGRAMS */
};
struct tr_endpoint *tr_endpoint_new(struct tr_engine *, const struct tr_sizes *);
void tr_endpoint_free(struct tr_endpoint *); /* wipes its keys */

/* One endpoint is used by one thread at a time: every function below that takes one wants this lock held. Uncontended it
 * costs about 20 ns; a worker takes it for a batch. */
void tr_endpoint_lock(struct tr_endpoint *);
void tr_endpoint_unlock(struct tr_endpoint *);

/* -- packets -- */

void tr_engine_receive(struct tr_endpoint *, const struct tr_packet *, const struct tr_instant *, struct tr_result *);

/* Give the connection of a packet that was parked just now (no other call between) to Python: all that the engine knows of it is written to out and
 * forgotten here, and until tr_engine_returned() the connection's packets are parked. Returns the octets written (0: it knew nothing); at
 * most TR_HANDOVER. Not calling it is allowed: drop the packet (count it: tr_engine_count) and nothing has happened. */
enum { TR_HANDOVER = 4096 };
uint32_t tr_engine_hand_over(struct tr_endpoint *, const struct tr_packet *, uint8_t *out);

/* Python has dealt with a packet that was handed over; data is that packet. Call it once for each tr_engine_hand_over. */
void tr_engine_returned(struct tr_endpoint *, const uint8_t *data, uint32_t captured, enum tr_hook);

/* Fill in the TCP or UDP checksum of a whole packet that the kernel has left for its network card, before anybody but the engine
 * reads it. Does nothing to packets it cannot parse. (packet.c) */
void tr_packet_complete_sum(uint8_t *data, uint32_t captured);

/* -- upkeep -- */

uint32_t tr_engine_entropy_room(const struct tr_endpoint *);                   /* nonces that the pool still takes */
void tr_engine_add_entropy(struct tr_endpoint *, const uint8_t *, uint32_t nonces); /* of TR_NONCE_SIZE each; wiped as used */

uint64_t tr_engine_next_deadline(const struct tr_endpoint *); /* monotonic ns at which tr_engine_expire has work; UINT64_MAX: none */
void tr_engine_expire(struct tr_endpoint *, uint64_t mono_ns);

void tr_engine_count(struct tr_endpoint *, enum tr_reason, uint64_t packets); /* a drop outside of the engine */

/* Events that wait to be taken (teach.h): wake Python up for them, now and then. */
uint32_t tr_engine_events_waiting(const struct tr_endpoint *);

struct tr_counters {
    uint64_t drops[TR_REASONS];
    uint64_t parked[TR_PARKS];
    uint64_t accepted[2][TR_VERDICT_REASONS]; /* [0 ingress, 1 egress][model.Reason, in its order] */
    uint64_t unrecorded[2][TR_VERDICT_REASONS]; /* those of them that became no event: nobody listened, or nobody took older ones in time */
    uint32_t clients, servers, live, peers, verdicts, owned; /* entries now */
    uint32_t proving; /* of the clients: the server has answered, and the proof has not left */
};
void tr_engine_counters(const struct tr_endpoint *, struct tr_counters *);

/* -- translation -- */

struct tr_end {
    uint8_t address[16]; /* IPv4 as ::ffff:a.b.c.d */
    uint16_t port;       /* host order */
};
enum tr_shown { TR_SHOWN, TR_NO_CONNECTION, TR_CANNOT_TELL };
/* What the node's conntrack shows of the connection source -> dialled of an IP protocol: where dialled was translated to (itself, where it was
 * not). Called from tr_engine_receive for a SYN-ACK or a CONFIRM whose server is not the one that was dialled. */
typedef enum tr_shown tr_translate(
    void *context, uint8_t version, uint8_t protocol, const struct tr_end *source, const struct tr_end *dialled, struct tr_end *shown);
void tr_engine_set_translate(struct tr_endpoint *, tr_translate *, void *context); /* NULL: such packets are parked */

#endif
