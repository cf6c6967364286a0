/* Threads that serve pods' queues: read, have the engine judge, answer.
 *
 * One thread for each processor; each pod is bound to one of them. What the engine parks waits in a list of its pod, with
 * bounds, until Python takes it and answers by the kernel's number of the packet. No Python here, and no GIL.
 */
#ifndef TRIREME_WORKER_H
#define TRIREME_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine.h"

enum { TR_QUEUE_LENGTH = 8192 }; /* packets that may wait for a verdict; the kernel drops what comes on top, and counts */

/* The packet marks that carry a verdict to the pod's rules (agent/marks.py). */
struct tr_marks {
    uint32_t mask;
    uint32_t pass, pass_clear;
    uint32_t accept; /* of the epoch in force */
};

/* A packet that waits for Python. */
struct tr_parked {
    struct tr_parked *next;
    uint32_t id;   /* the kernel's number */
    uint32_t mark; /* its packet mark as it came */
    enum tr_hook hook;
    uint32_t captured, handover; /* octets of each in data, one behind the other */
    uint8_t data[];
};

/* What a pod's queue counts, besides the engine and the kernel. */
struct tr_pod_counters {
    uint64_t packets[2]; /* by enum tr_hook */
    uint64_t truncated;  /* judged by their beginning, delivered whole */
    uint64_t foreign;    /* caught elsewhere: a rule of somebody else's uses our queue */
    uint64_t refused;    /* verdicts that the kernel did not take */
    uint64_t malformed;  /* messages of the kernel that make no sense */
    uint64_t turned_away; /* dropped in place of being parked: no room, or too many a second */
};

struct tr_workers;
struct tr_pod;

/* Start `count` threads. NULL with errno set. */
struct tr_workers *tr_workers_new(unsigned count);
/* End them. Their pods are gone before. */
void tr_workers_free(struct tr_workers *);

/* Take over queue `number` of the namespace that netfilter netlink socket `fd` was made in; packets wait from now on. The
 * descriptor is the pod's, whatever comes of it. `foreign_passes`: what becomes of packets from another hook. NULL with errno
 * set; EBUSY: somebody else holds the queue. */
struct tr_pod *tr_pod_new(int fd, uint16_t number, const struct tr_marks *, bool foreign_passes);
/* Have them read and judged. Once, before anything below. Returns 0 or a negative errno. */
int tr_pod_start(struct tr_pod *, struct tr_workers *, struct tr_endpoint *);
/* Stop, and forget all that waits: the kernel drops it. No thread uses the pod or its endpoint after this. */
void tr_pod_free(struct tr_pod *);

/* A descriptor that is readable while something is parked or the queue is broken. The pod's own; never read it. */
int tr_pod_wakeup(const struct tr_pod *);

/* Mark connections with `accept` from the next packet on. */
void tr_pod_set_accept(struct tr_pod *, uint32_t accept);

/* Take the oldest parked packets, `most` at the most, as a list that the caller frees one by one. NULL: none waits. */
struct tr_parked *tr_pod_take(struct tr_pod *, size_t most);

/* Read and judge what waits in the queue right now, on this thread. */
void tr_pod_poll(struct tr_pod *);

/* Answer a packet that was taken: NF_DROP, or NF_REPEAT with `mark` and, unless NULL, other octets. Returns 0 or a negative
 * errno: -EMSGSIZE for more octets than any packet of ours has. */
int tr_pod_answer(struct tr_pod *, uint32_t id, uint32_t verdict, uint32_t mark, const uint8_t *data, uint32_t length);

/* 0, or the negative errno with which the queue's socket ended: nobody reads it any more. */
int tr_pod_error(struct tr_pod *);

void tr_pod_counters(struct tr_pod *, struct tr_pod_counters *);

#endif
