#include "worker.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <linux/netfilter.h>

#include "netlink.h"

#define ROUNDS 8
/* Batches of one pod before the thread looks after its others. */
#define PATIENCE 20
/* How often in a row a connection's mark is put off because more of it waits (agent/nfqueue.py says why). */
#define REMEMBERED 1024
/* Connections whose mark was put off lately. One that another displaces begins anew. */
#define OUTBOX_SIZE (192 << 10)
/* Octets: less than a socket's send buffer holds. */
#define STACK_SIZE (256 << 10)
#define NONCES 32
/* Drawn from the kernel at a time. */
#define PARKED_MOST 8192
#define PARKED_OCTETS (16 << 20)
#define STRANGERS_MOST 2048
#define STRANGERS_OCTETS (2 << 20)
#define STRANGERS_A_SECOND 2000
/* What an unknown peer may cost Python: some 60 us each, a tenth of a processor. */
#define NO_SLOT UINT32_MAX

/* -- a lock that hands over ----------------------------------------------------------------------------------------- */

/* Who waits for it gets it next, even if its holder takes it again at once, as a busy worker does. */
struct fair_lock {
    pthread_mutex_t turn, lock;
};

static void fair_lock_init(struct fair_lock *fair)
{
    pthread_mutex_init(&fair->turn, NULL);
    pthread_mutex_init(&fair->lock, NULL);
}

static void fair_lock_destroy(struct fair_lock *fair)
{
    pthread_mutex_destroy(&fair->turn);
    pthread_mutex_destroy(&fair->lock);
}

static void fair_lock_take(struct fair_lock *fair)
{
    pthread_mutex_lock(&fair->turn);
    pthread_mutex_lock(&fair->lock);
    pthread_mutex_unlock(&fair->turn);
}

static void fair_lock_release(struct fair_lock *fair)
{
    pthread_mutex_unlock(&fair->lock);
}

/* -- what there is -------------------------------------------------------------------------------------------------- */

struct list {
    struct tr_parked *first, **last;
    size_t packets, octets;
};

struct tr_pod {
    struct worker *worker;
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
};

/* A verdict that marks its connection, as it stands in the outbox. */
struct accepted {
    uint32_t connection;
    uint32_t *mark;
    uint32_t instead; /* the mark that says PASS, in network order */
};

struct put_off {
    uint32_t connection;
    uint32_t times;
};

struct worker {
    struct fair_lock lock; /* of all below, and of all pods of this worker but their `parking` */
    pthread_t thread;
    bool started;
    int epoll;
    struct tr_pod **slots;
    uint32_t *generations;
    uint32_t slot_count, pods;
    struct tr_inbox *inbox, *next;
    uint32_t hashes[2][TR_BATCH]; /* connections of what is in inbox, and in next */
    struct tr_outbox outbox;
    struct accepted accepted[TR_BATCH];
    int accepted_count;
    struct put_off put_off[REMEMBERED];
    uint64_t stranger_level, stranger_seen; /* a token bucket, in ns */
    uint8_t handover[TR_HANDOVER];
};

struct tr_workers {
    unsigned count;
    pthread_mutex_t assigning;
    struct worker workers[];
};

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* -- packets -------------------------------------------------------------------------------------------------------- */

static uint32_t mix(uint32_t hash, const uint8_t *data, size_t words)
{
    for (; words-- > 0; data += 4) {
        uint32_t word;
        memcpy(&word, data, 4);
        hash = (hash ^ word) * 0x9E3779B1u;
        hash ^= hash >> 15;
    }
    return hash;
}

/* Number a packet's connection, the same for both directions as the pod sees them. Only the order of packets depends on
 * it: two connections of one number wait for each other's packets, and whatever stands where ports usually are will do. */
static uint32_t number_connection(const struct tr_pod *pod, const struct tr_queued *packet)
{
    const uint8_t *data = packet->data;
    size_t words, ports, at;
    uint8_t both[4] = {0};
    if (packet->captured < 20) return 0;
    if (data[0] >> 4 == 4) {
        at = 12, words = 1, ports = (data[0] & 15u) * 4u;
    } else {
        at = 8, words = 4, ports = 40;
        if (packet->captured < 40) return 0;
    }
    if (ports + 4 <= packet->captured) memcpy(both, data + ports, 4);
    const uint8_t *source = data + at, *destination = source + words * 4;
    bool leaving = packet->hook == NF_INET_POST_ROUTING;
    if (!leaving) {
        uint8_t swapped[4] = {both[2], both[3], both[0], both[1]};
        memcpy(both, swapped, 4);
    }
    uint32_t hash = mix(pod->slot, leaving ? source : destination, words);
    return mix(mix(hash, leaving ? destination : source, words), both, 1);
}

static bool is_truncated(const struct tr_queued *packet)
{
    if (packet->captured < 20) return false;
    const uint8_t *data = packet->data;
    if (data[0] >> 4 == 4) return ((uint32_t)data[2] << 8 | data[3]) > packet->captured;
    return ((uint32_t)data[4] << 8 | data[5]) + 40 > packet->captured;
}

static uint32_t mark_of(const struct tr_pod *pod, enum tr_verdict verdict, uint32_t mark)
{
    uint32_t value = verdict == TR_ACCEPT ? pod->marks.accept
                     : verdict == TR_PASS ? pod->marks.pass
                                          : pod->marks.pass_clear;
    return (mark & ~pod->marks.mask) | value;
}

/* Send the verdicts in the outbox. Those that did not go are lost, as their packets then are. */
static void send_verdicts(struct worker *worker, struct tr_pod *pod)
{
    int error = tr_outbox_send(&worker->outbox, &pod->queue);
    if (error != 0) pod->error = error;
    worker->accepted_count = 0;
}

/* The outbox has room: it is sent before it could be otherwise. */
static uint32_t *answer(struct worker *worker, struct tr_pod *pod, uint32_t id, uint32_t verdict, uint32_t mark,
                        const uint8_t *data, uint32_t length)
{
    uint32_t *marked = NULL;
    if (!tr_outbox_add(&worker->outbox, &pod->queue, id, verdict, mark, data, length, &marked)) pod->counters.refused++;
    return marked;
}

/* -- parking -------------------------------------------------------------------------------------------------------- */

static bool allow_stranger(struct worker *worker, uint64_t now)
{
    const uint64_t each = 1000000000u / STRANGERS_A_SECOND, burst = each * STRANGERS_MOST;
    uint64_t gained = now - worker->stranger_seen;
    worker->stranger_seen = now;
    worker->stranger_level = gained > burst - worker->stranger_level ? burst : worker->stranger_level + gained;
    if (worker->stranger_level < each) return false;
    worker->stranger_level -= each;
    return true;
}

static void append(struct list *list, struct tr_parked *parked)
{
    parked->next = NULL;
    *list->last = parked;
    list->last = &parked->next;
    list->packets++;
    list->octets += parked->captured + parked->handover;
}

static struct tr_parked *take_first(struct list *list)
{
    struct tr_parked *parked = list->first;
    list->first = parked->next;
    if (list->first == NULL) list->last = &list->first;
    list->packets--;
    list->octets -= parked->captured + parked->handover;
    return parked;
}

/* Keep a packet for Python. Returns false where there is no room for it: it is to be dropped, and is counted. */
static bool park(struct worker *worker, struct tr_pod *pod, const struct tr_queued *queued,
                 const struct tr_packet *packet, enum tr_park class, uint64_t now)
{
    struct list *list = &pod->parked[class];
    bool stranger = class == TR_PARK_STRANGER;
    if (stranger && !allow_stranger(worker, now)) {
        tr_engine_count(pod->endpoint, TR_RATE_LIMITED, 1);
        return false;
    }
    pthread_mutex_lock(&pod->parking);
    bool room = list->packets < (stranger ? STRANGERS_MOST : PARKED_MOST) &&
                list->octets < (stranger ? STRANGERS_OCTETS : PARKED_OCTETS);
    pthread_mutex_unlock(&pod->parking);
    struct tr_parked *parked = NULL;
    if (room) {
        uint32_t handover = tr_engine_hand_over(pod->endpoint, packet, worker->handover);
        parked = malloc(sizeof *parked + queued->captured + handover);
        if (parked != NULL) {
            *parked = (struct tr_parked){.id = queued->id,
                                         .mark = queued->mark,
                                         .hook = packet->hook,
                                         .captured = queued->captured,
                                         .handover = handover};
            memcpy(parked->data, queued->data, queued->captured);
            memcpy(parked->data + queued->captured, worker->handover, handover);
        } else
            tr_engine_returned(pod->endpoint, packet->data, packet->captured, packet->hook);
    }
    if (parked == NULL) {
        pod->counters.crowded++;
        tr_engine_count(pod->endpoint, TR_NOT_READY, 1);
        return false;
    }
    pthread_mutex_lock(&pod->parking);
    append(list, parked);
    bool first = pod->waiting++ == 0;
    pthread_mutex_unlock(&pod->parking);
    if (first) eventfd_write(pod->wakeup, 1);
    return true;
}

/* -- judging -------------------------------------------------------------------------------------------------------- */

static void add_entropy(struct tr_endpoint *endpoint)
{
    uint8_t nonces[NONCES * TR_NONCE_SIZE];
    uint32_t room = tr_engine_entropy_room(endpoint);
    if (room < NONCES) return;
    if (getrandom(nonces, sizeof nonces, 0) == sizeof nonces) tr_engine_add_entropy(endpoint, nonces, NONCES);
    explicit_bzero(nonces, sizeof nonces);
}

static void judge_one(struct worker *worker, struct tr_pod *pod, const struct tr_queued *queued, bool more,
                      uint32_t connection, const struct tr_instant *now)
{
    struct tr_packet packet = {.data = queued->data, .captured = queued->captured, .more = more};
    struct tr_result result;
    if (queued->hook != NF_INET_PRE_ROUTING && queued->hook != NF_INET_POST_ROUTING) {
        pod->counters.foreign++;
        answer(worker, pod, queued->id, pod->foreign_passes ? NF_REPEAT : NF_DROP, mark_of(pod, TR_PASS, queued->mark),
               NULL, 0);
        return;
    }
    packet.hook = queued->hook == NF_INET_POST_ROUTING ? TR_APPLICATION : TR_NETWORK;
    packet.out = tr_outbox_room(&worker->outbox, &packet.room);
    pod->counters.packets[packet.hook]++;
    pod->counters.truncated += is_truncated(queued);
    tr_engine_receive(pod->endpoint, &packet, now, &result);
    if (result.verdict == TR_PARK && result.park == TR_PARK_ENTROPY) {
        add_entropy(pod->endpoint);
        tr_engine_receive(pod->endpoint, &packet, now, &result);
        if (result.verdict == TR_PARK && result.park == TR_PARK_ENTROPY) {
            tr_engine_count(pod->endpoint, TR_NOT_READY, 1);
            result.verdict = TR_DROP;
        }
    }
    if (result.verdict == TR_PARK) {
        if (park(worker, pod, queued, &packet, result.park, now->mono_ns)) return;
        result.verdict = TR_DROP;
    }
    if (result.verdict == TR_DROP) {
        answer(worker, pod, queued->id, NF_DROP, 0, NULL, 0);
        return;
    }
    uint32_t *marked = answer(worker, pod, queued->id, NF_REPEAT, mark_of(pod, result.verdict, queued->mark),
                              result.length ? packet.out : NULL, result.length);
    if (result.verdict == TR_ACCEPT && marked != NULL)
        worker->accepted[worker->accepted_count++] =
            (struct accepted){connection, marked, htonl(mark_of(pod, TR_PASS, queued->mark))};
}

static bool among(const uint32_t *hashes, int count, uint32_t hash)
{
    for (int index = 0; index < count; index++)
        if (hashes[index] == hash) return true;
    return false;
}

/* Once its mark is there a connection's packets pass in the kernel and would overtake those that wait in the queue. So
 * while some wait, a verdict that marks becomes one that passes the packet alone; for PATIENCE packets in a row. */
static void put_marks_off(struct worker *worker, const uint32_t *hashes, int waiting, bool all)
{
    for (int index = 0; index < worker->accepted_count; index++) {
        struct accepted *accepted = &worker->accepted[index];
        struct put_off *before = &worker->put_off[accepted->connection % REMEMBERED];
        bool known = before->connection == accepted->connection;
        if (!all && !among(hashes, waiting, accepted->connection)) {
            if (known) before->times = 0;
        } else if (!known || before->times < PATIENCE) {
            *before = (struct put_off){accepted->connection, known ? before->times + 1 : 1};
            *accepted->mark = accepted->instead;
        } else
            before->times = 0;
    }
}

/* -- one pod's turn ------------------------------------------------------------------------------------------------- */

static int read_batch(struct worker *worker, struct tr_pod *pod, bool *full)
{
    struct tr_inbox *inbox = worker->next;
    int count = tr_queue_read(&pod->queue, inbox, full);
    if (count < 0) {
        pod->error = count;
        return 0;
    }
    for (int index = 0; index < count; index++)
        worker->hashes[1][index] = number_connection(pod, &inbox->packets[index]);
    return count;
}

static void judge_batch(struct worker *worker, struct tr_pod *pod, int count)
{
    struct tr_inbox *inbox = worker->inbox;
    const uint32_t *hashes = worker->hashes[0];
    struct tr_instant now = {nanoseconds(CLOCK_MONOTONIC), (double)nanoseconds(CLOCK_REALTIME) / 1e9};
    tr_endpoint_lock(pod->endpoint);
    for (int index = 0; index < count; index++) {
        bool more = among(hashes + index + 1, count - index - 1, hashes[index]);
        judge_one(worker, pod, &inbox->packets[index], more, hashes[index], &now);
        uint32_t room;
        tr_outbox_room(&worker->outbox, &room);
        if (room < TR_COPY_RANGE) { /* rare: a batch of large rewritten packets */
            put_marks_off(worker, hashes + index + 1, count - index - 1, false);
            send_verdicts(worker, pod);
        }
    }
    add_entropy(pod->endpoint);
    tr_endpoint_unlock(pod->endpoint);
}

/* The worker's lock is held. */
static void serve(struct worker *worker, struct tr_pod *pod)
{
    bool full;
    int count = read_batch(worker, pod, &full);
    for (int round = 1; count > 0; round++) {
        struct tr_inbox *swapped = worker->inbox;
        worker->inbox = worker->next;
        worker->next = swapped;
        memcpy(worker->hashes[0], worker->hashes[1], (size_t)count * sizeof worker->hashes[0][0]);
        judge_batch(worker, pod, count);
        count = 0;
        if (round == ROUNDS) {
            put_marks_off(worker, NULL, 0, true); /* who knows what waits */
        } else if (worker->accepted_count > 0) {
            count = read_batch(worker, pod, &full);
            put_marks_off(worker, worker->hashes[1], count, false);
        }
        send_verdicts(worker, pod);
        if (round < ROUNDS && count == 0 && full) count = read_batch(worker, pod, &full);
    }
    if (pod->error != 0) { /* the kernel goes on as it does while nobody listens */
        epoll_ctl(worker->epoll, EPOLL_CTL_DEL, pod->queue.fd, NULL);
        eventfd_write(pod->wakeup, 1);
    }
}

static void *run(void *argument)
{
    struct worker *worker = argument;
    struct epoll_event events[64];
    for (;;) {
        int ready = epoll_wait(worker->epoll, events, 64, -1);
        for (int index = 0; index < ready; index++) {
            uint32_t slot = (uint32_t)events[index].data.u64, generation = (uint32_t)(events[index].data.u64 >> 32);
            if (slot == NO_SLOT) return NULL;
            fair_lock_take(&worker->lock);
            /* The pod may have gone since. */
            if (slot < worker->slot_count && worker->generations[slot] == generation && worker->slots[slot] != NULL)
                serve(worker, worker->slots[slot]);
            fair_lock_release(&worker->lock);
        }
    }
}

/* -- life ----------------------------------------------------------------------------------------------------------- */

static void end_worker(struct worker *worker)
{
    if (worker->started) {
        int stop = eventfd(1, EFD_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = NO_SLOT};
        if (stop < 0 || epoll_ctl(worker->epoll, EPOLL_CTL_ADD, stop, &event) != 0) abort(); /* out of descriptors */
        pthread_join(worker->thread, NULL);
        close(stop);
    }
    if (worker->epoll >= 0) close(worker->epoll);
    tr_outbox_free(&worker->outbox);
    free(worker->inbox);
    free(worker->next);
    free(worker->slots);
    free(worker->generations);
    fair_lock_destroy(&worker->lock);
}

static int begin_worker(struct worker *worker, unsigned number)
{
    pthread_attr_t attributes;
    char name[32]; /* the kernel takes 15 octets */
    fair_lock_init(&worker->lock);
    worker->stranger_seen = nanoseconds(CLOCK_MONOTONIC);
    worker->stranger_level = STRANGERS_MOST * (1000000000u / STRANGERS_A_SECOND);
    worker->inbox = malloc(sizeof *worker->inbox);
    worker->next = malloc(sizeof *worker->next);
    worker->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (worker->epoll < 0) return errno;
    if (worker->inbox == NULL || worker->next == NULL || tr_outbox_init(&worker->outbox, OUTBOX_SIZE) != 0)
        return ENOMEM;
    tr_inbox_init(worker->inbox);
    tr_inbox_init(worker->next);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    int error = pthread_create(&worker->thread, &attributes, run, worker);
    pthread_attr_destroy(&attributes);
    if (error != 0) return error;
    worker->started = true;
    snprintf(name, sizeof name, "fastpath-%u", number);
    pthread_setname_np(worker->thread, name);
    return 0;
}

struct tr_workers *tr_workers_new(unsigned count)
{
    struct tr_workers *workers = calloc(1, sizeof *workers + count * sizeof workers->workers[0]);
    if (workers == NULL) return NULL;
    pthread_mutex_init(&workers->assigning, NULL);
    for (; workers->count < count; workers->count++) {
        workers->workers[workers->count].epoll = -1;
        int error = begin_worker(&workers->workers[workers->count], workers->count);
        if (error != 0) {
            workers->count++;
            tr_workers_free(workers);
            errno = error;
            return NULL;
        }
    }
    return workers;
}

void tr_workers_free(struct tr_workers *workers)
{
    for (unsigned index = 0; index < workers->count; index++) end_worker(&workers->workers[index]);
    pthread_mutex_destroy(&workers->assigning);
    free(workers);
}

static int find_slot(struct worker *worker, struct tr_pod *pod)
{
    for (pod->slot = 0; pod->slot < worker->slot_count; pod->slot++)
        if (worker->slots[pod->slot] == NULL) break;
    if (pod->slot == worker->slot_count) {
        uint32_t count = worker->slot_count ? worker->slot_count * 2 : 16;
        struct tr_pod **slots = realloc(worker->slots, count * sizeof *slots);
        if (slots != NULL) worker->slots = slots;
        uint32_t *generations = realloc(worker->generations, count * sizeof *generations);
        if (generations != NULL) worker->generations = generations;
        if (slots == NULL || generations == NULL) return ENOMEM;
        for (uint32_t index = worker->slot_count; index < count; index++) slots[index] = NULL, generations[index] = 0;
        worker->slot_count = count;
    }
    worker->slots[pod->slot] = pod;
    worker->generations[pod->slot]++;
    return 0;
}

/* Hand the pod to the worker with the fewest. */
static int assign(struct tr_workers *workers, struct tr_pod *pod)
{
    struct worker *least = &workers->workers[0];
    pthread_mutex_lock(&workers->assigning);
    for (unsigned index = 1; index < workers->count; index++)
        if (workers->workers[index].pods < least->pods) least = &workers->workers[index];
    fair_lock_take(&least->lock);
    int error = find_slot(least, pod);
    if (error == 0) {
        struct epoll_event event = {.events = EPOLLIN};
        event.data.u64 = (uint64_t)least->generations[pod->slot] << 32 | pod->slot;
        pod->worker = least;
        if (epoll_ctl(least->epoll, EPOLL_CTL_ADD, pod->queue.fd, &event) == 0) least->pods++;
        else error = errno, least->slots[pod->slot] = NULL;
    }
    fair_lock_release(&least->lock);
    pthread_mutex_unlock(&workers->assigning);
    return error;
}

struct tr_pod *tr_pod_new(struct tr_workers *workers, struct tr_endpoint *endpoint, int fd, uint16_t number,
                          const struct tr_marks *marks, bool foreign_passes)
{
    struct tr_pod *pod = calloc(1, sizeof *pod);
    int error = ENOMEM;
    if (pod != NULL) {
        pod->endpoint = endpoint;
        pod->marks = *marks;
        pod->foreign_passes = foreign_passes;
        pthread_mutex_init(&pod->parking, NULL);
        for (int class = 0; class < TR_PARK_ENTROPY; class++) pod->parked[class].last = &pod->parked[class].first;
        pod->wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        error = pod->wakeup < 0 ? errno : -tr_queue_bind(&pod->queue, fd, number, TR_QUEUE_LENGTH);
        if (error == 0) error = assign(workers, pod);
        if (error == 0) return pod;
        if (pod->wakeup >= 0) close(pod->wakeup);
        pthread_mutex_destroy(&pod->parking);
        free(pod);
    }
    close(fd);
    errno = error;
    return NULL;
}

void tr_pod_free(struct tr_pod *pod)
{
    struct worker *worker = pod->worker;
    fair_lock_take(&worker->lock);
    epoll_ctl(worker->epoll, EPOLL_CTL_DEL, pod->queue.fd, NULL);
    worker->slots[pod->slot] = NULL;
    worker->pods--;
    fair_lock_release(&worker->lock);
    close(pod->queue.fd);
    close(pod->wakeup);
    for (int class = 0; class < TR_PARK_ENTROPY; class++)
        while (pod->parked[class].first != NULL) free(take_first(&pod->parked[class]));
    pthread_mutex_destroy(&pod->parking);
    free(pod);
}

/* -- for Python ----------------------------------------------------------------------------------------------------- */

int tr_pod_wakeup(const struct tr_pod *pod)
{
    return pod->wakeup;
}

void tr_pod_set_accept(struct tr_pod *pod, uint32_t accept)
{
    fair_lock_take(&pod->worker->lock);
    pod->marks.accept = accept;
    fair_lock_release(&pod->worker->lock);
}

struct tr_parked *tr_pod_take(struct tr_pod *pod, size_t most)
{
    struct tr_parked *first = NULL, **last = &first;
    pthread_mutex_lock(&pod->parking);
    for (int class = 0; class < TR_PARK_ENTROPY; class++)
        for (; pod->parked[class].first != NULL && most > 0; most--) {
            *last = take_first(&pod->parked[class]);
            last = &(*last)->next;
            pod->waiting--;
        }
    *last = NULL;
    if (pod->waiting == 0) {
        eventfd_t count;
        eventfd_read(pod->wakeup, &count);
    }
    pthread_mutex_unlock(&pod->parking);
    return first;
}

void tr_pod_poll(struct tr_pod *pod)
{
    fair_lock_take(&pod->worker->lock);
    if (pod->error == 0) serve(pod->worker, pod);
    fair_lock_release(&pod->worker->lock);
}

int tr_pod_answer(struct tr_pod *pod, uint32_t id, uint32_t verdict, uint32_t mark, const uint8_t *data,
                  uint32_t length)
{
    _Alignas(4) uint8_t message[TR_COPY_RANGE + TR_ROOM + 256];
    struct tr_outbox outbox = {.data = message, .size = sizeof message};
    uint32_t *marked;
    if (!tr_outbox_add(&outbox, &pod->queue, id, verdict, mark, data, length, &marked)) return -EMSGSIZE;
    return tr_outbox_send(&outbox, &pod->queue);
}

int tr_pod_error(struct tr_pod *pod)
{
    fair_lock_take(&pod->worker->lock);
    int error = pod->error;
    fair_lock_release(&pod->worker->lock);
    return error;
}

void tr_pod_counters(struct tr_pod *pod, struct tr_pod_counters *counters)
{
    fair_lock_take(&pod->worker->lock);
    *counters = pod->counters;
    counters->refused += pod->queue.errors.refused;
    counters->malformed += pod->queue.errors.malformed;
    fair_lock_release(&pod->worker->lock);
}
