/* What the two halves of the threads share: worker.c has their lives, serve.c what they do. */
#ifndef TRIREME_POD_H
#define TRIREME_POD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "netlink.h"
#include "worker.h"

#define TR_REMEMBERED 1024
/* Connections whose mark was put off lately. One that another displaces begins anew. */

/* Who waits for it gets it next, even if its holder takes it again at once, as a busy worker does. */
struct fair_lock {
    pthread_mutex_t turn, lock;
};

static inline void fair_lock_init(struct fair_lock *fair)
{
    pthread_mutex_init(&fair->turn, NULL);
    pthread_mutex_init(&fair->lock, NULL);
}

static inline void fair_lock_destroy(struct fair_lock *fair)
{
    pthread_mutex_destroy(&fair->turn);
    pthread_mutex_destroy(&fair->lock);
}

static inline void fair_lock_take(struct fair_lock *fair)
{
    pthread_mutex_lock(&fair->turn);
    pthread_mutex_lock(&fair->lock);
    pthread_mutex_unlock(&fair->turn);
}

static inline void fair_lock_release(struct fair_lock *fair)
{
    pthread_mutex_unlock(&fair->lock);
}

struct list {
    struct tr_parked *first, **last;
    size_t packets, octets;
};

struct tr_pod {
    struct tr_worker *worker;
    struct tr_endpoint *endpoint;
    uint32_t slot;
    struct tr_queue queue;
    int wakeup;
    int error;
    bool foreign_passes;
    struct tr_marks marks;
    struct tr_pod_counters counters;
    pthread_mutex_t parking; /* of what follows */
    struct list parked[TR_PARK_ENTROPY];
    size_t waiting;
    bool broken; /* `error` is set, and `wakeup` readable for good: Python may have asked for the one just before, and take just after */
};

/* What a packet is to the order of others. */
struct tr_line {
    uint32_t connection;
    bool counts; /* it must not be overtaken */
};

/* A verdict that marks its connection, as it stands in the outbox. */
struct accepted {
    uint32_t connection;
    uint32_t *mark;
    uint32_t instead; /* the mark that says PASS, in network order */
};

/* How many packets of a class Python may be given: a token bucket, in nanoseconds, full in the beginning as time is. */
struct bucket {
    uint64_t level, seen;
};

struct put_off {
    uint32_t connection;
    uint32_t times;
};

struct tr_worker {
    struct fair_lock lock; /* of all below, and of all pods of this worker but their `parking` */
    pthread_t thread;
    bool started;
    int epoll;
    int stop; /* readable when the thread is to end */
    uint8_t seed[16]; /* random: of the numbers of connections */
    struct tr_pod **slots;
    uint32_t *generations;
    uint32_t slot_count, pods;
    struct tr_inbox *inbox, *next;
    struct tr_line lines[2][TR_BATCH]; /* of what is in inbox, and in next */
    struct tr_outbox outbox;
    struct accepted accepted[TR_BATCH];
    int accepted_count;
    uint32_t deferred[TR_BATCH]; /* connections of the batch's packets that passed because more of them come behind */
    int deferred_count;
    struct put_off put_off[TR_REMEMBERED];
    struct bucket buckets[TR_PARK_ENTROPY];
    uint8_t handover[TR_HANDOVER];
};

/* Read, judge and answer what waits in a pod's queue. The worker's lock is held. */
void tr_serve(struct tr_worker *, struct tr_pod *);

struct tr_parked *tr_take_first(struct list *);

#endif
