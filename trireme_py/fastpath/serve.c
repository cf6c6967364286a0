#include "pod.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>

#include <linux/netfilter.h>

#include "siphash.h"

#define ROUNDS 8
/* Batches of one pod before the thread looks after its others. */
#define PATIENCE 20
/* How often in a row a connection's mark is put off because more of it waits (agent/nfqueue.py says why). */
#define FLAGS 0x37u /* FIN, SYN, RST, ACK and URG */
#define FLAG_ACK 0x10u
#define NONCES 32
/* Drawn from the kernel at a time. */

/* What may wait for Python, by class, and how much of it a second, for each thread: the network must not be able to keep
 * Python busy. A packet takes it some 60 us. */
static const struct limit {
    size_t packets, octets;
    uint64_t per_second; /* 0: as many as come */
} limits[TR_PARK_ENTROPY] = {
    [TR_PARK_OWNED] = {8192, 16 << 20, 0},
    [TR_PARK_KNOWN] = {2048, 2 << 20, 4000},
    [TR_PARK_PLAIN] = {4096, 8 << 20, 8000},
    [TR_PARK_STRANGER] = {2048, 2 << 20, 500},
};

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* -- packets -------------------------------------------------------------------------------------------------------- */

/* Number a packet's connection, the same for both directions as the pod sees them. Only the order of packets depends on
 * it: two connections of one number wait for each other's packets, and whatever stands where ports usually are will do. Under a key,
 * or a stranger could choose a flow whose packets keep somebody else's mark off. */
static uint32_t number_connection(const struct tr_worker *worker, const struct tr_pod *pod, const struct tr_queued *packet)
{
    const uint8_t *data = packet->data;
    uint8_t name[4 + 2 * 16 + 4], both[4] = {0};
    size_t size, ports, at;
    if (packet->captured < 20) return 0;
    if (data[0] >> 4 == 4) {
        at = 12, size = 4, ports = (data[0] & 15u) * 4u;
    } else {
        at = 8, size = 16, ports = 40;
        if (packet->captured < 40) return 0;
    }
    if (ports + 4 <= packet->captured) memcpy(both, data + ports, 4);
    const uint8_t *source = data + at, *destination = source + size;
    bool leaving = packet->hook == NF_INET_POST_ROUTING;
    if (!leaving) {
        uint8_t swapped[4] = {both[2], both[3], both[0], both[1]};
        memcpy(both, swapped, 4);
    }
    memcpy(name, &pod->slot, 4);
    memcpy(name + 4, leaving ? source : destination, size);
    memcpy(name + 4 + size, leaving ? destination : source, size);
    memcpy(name + 4 + 2 * size, both, 4);
    return (uint32_t)tr_siphash(worker->seed, name, 8 + 2 * size);
}

/* Whether a packet that waits must not be overtaken by later ones of its connection. A TCP segment that only acknowledges may
 * be: what it says is old by then. So it keeps no connection from its mark, which is all that lets it go on without us. */
static bool counts(const struct tr_queued *packet)
{
    const uint8_t *data = packet->data;
    if (packet->captured < 40) return true;
    bool ipv4 = data[0] >> 4 == 4;
    uint32_t tcp = ipv4 ? (data[0] & 15u) * 4u : 40;
    uint32_t end = ipv4 ? (uint32_t)data[2] << 8 | data[3] : ((uint32_t)data[4] << 8 | data[5]) + 40;
    if (data[ipv4 ? 9 : 6] != IPPROTO_TCP || packet->captured < tcp + 20) return true;
    return (data[tcp + 13] & FLAGS) != FLAG_ACK || end != tcp + (data[tcp + 12] >> 4) * 4u;
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
static void send_verdicts(struct tr_worker *worker, struct tr_pod *pod)
{
    int error = tr_outbox_send(&worker->outbox, &pod->queue);
    if (error != 0) pod->error = error;
    worker->accepted_count = 0;
}

/* The outbox has room: it is sent before it could be otherwise. */
static uint32_t *answer(struct tr_worker *worker, struct tr_pod *pod, uint32_t id, uint32_t verdict, uint32_t mark,
                        const uint8_t *data, uint32_t length)
{
    uint32_t *marked = NULL;
    if (!tr_outbox_add(&worker->outbox, &pod->queue, id, verdict, mark, data, length, &marked)) pod->counters.refused++;
    return marked;
}

/* -- parking -------------------------------------------------------------------------------------------------------- */

static bool allow(struct tr_worker *worker, enum tr_park class, uint64_t now)
{
    if (limits[class].per_second == 0) return true;
    struct bucket *bucket = &worker->buckets[class];
    const uint64_t each = 1000000000u / limits[class].per_second, burst = each * limits[class].packets;
    uint64_t gained = now - bucket->seen;
    bucket->seen = now;
    bucket->level = gained > burst - bucket->level ? burst : bucket->level + gained;
    if (bucket->level < each) return false;
    bucket->level -= each;
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

struct tr_parked *tr_take_first(struct list *list)
{
    struct tr_parked *parked = list->first;
    list->first = parked->next;
    if (list->first == NULL) list->last = &list->first;
    list->packets--;
    list->octets -= parked->captured + parked->handover;
    return parked;
}

/* Keep a packet for Python. Returns false where there is no room for it: it is to be dropped, and is counted. */
static bool park(struct tr_worker *worker, struct tr_pod *pod, const struct tr_queued *queued,
                 const struct tr_packet *packet, enum tr_park class, uint64_t now)
{
    struct list *list = &pod->parked[class];
    if (!allow(worker, class, now)) {
        pod->counters.turned_away++;
        tr_engine_count(pod->endpoint, TR_RATE_LIMITED, 1);
        return false;
    }
    pthread_mutex_lock(&pod->parking);
    bool room = list->packets < limits[class].packets && list->octets < limits[class].octets;
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
        pod->counters.turned_away++;
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

static void judge_one(struct tr_worker *worker, struct tr_pod *pod, const struct tr_queued *queued, bool more,
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
    if (result.deferred) worker->deferred[worker->deferred_count++] = connection;
    if (result.verdict == TR_ACCEPT && marked != NULL)
        worker->accepted[worker->accepted_count++] =
            (struct accepted){connection, marked, htonl(mark_of(pod, TR_PASS, queued->mark))};
}

static bool among(const struct tr_line *lines, int count, uint32_t connection)
{
    for (int index = 0; index < count; index++)
        if (lines[index].counts && lines[index].connection == connection) return true;
    return false;
}

static bool is_out_of_patience(const struct tr_worker *worker, uint32_t connection)
{
    const struct put_off *before = &worker->put_off[connection % TR_REMEMBERED];
    return before->connection == connection && before->times >= PATIENCE;
}

static void put_off_again(struct tr_worker *worker, uint32_t connection)
{
    struct put_off *before = &worker->put_off[connection % TR_REMEMBERED];
    *before = (struct put_off){connection, before->connection == connection ? before->times + 1 : 1};
}

/* What passed because more of its connection came behind it in the batch counts as put off, too, once, if nothing there would have
 * set the mark after all: the last may be anybody's in the connection's name. */
static void count_deferred(struct tr_worker *worker)
{
    for (int index = 0; index < worker->deferred_count; index++) {
        uint32_t connection = worker->deferred[index];
        bool counted = false;
        for (int other = 0; other < index; other++) counted |= worker->deferred[other] == connection;
        for (int other = 0; other < worker->accepted_count; other++)
            counted |= worker->accepted[other].connection == connection;
        if (!counted) put_off_again(worker, connection);
    }
    worker->deferred_count = 0;
}

/* Once its mark is there a connection's packets pass in the kernel and would overtake those that wait in the queue. So
 * while some wait, a verdict that marks becomes one that passes the packet alone; for PATIENCE packets in a row. */
static void put_marks_off(struct tr_worker *worker, const struct tr_line *lines, int waiting, bool all)
{
    for (int index = 0; index < worker->accepted_count; index++) {
        struct accepted *accepted = &worker->accepted[index];
        struct put_off *before = &worker->put_off[accepted->connection % TR_REMEMBERED];
        bool known = before->connection == accepted->connection;
        if (!all && !among(lines, waiting, accepted->connection)) {
            if (known) before->times = 0;
        } else if (!known || before->times < PATIENCE) {
            put_off_again(worker, accepted->connection);
            *accepted->mark = accepted->instead;
        } else
            before->times = 0;
    }
}

/* -- one pod's turn ------------------------------------------------------------------------------------------------- */

static int read_batch(struct tr_worker *worker, struct tr_pod *pod, bool *full)
{
    struct tr_inbox *inbox = worker->next;
    int count = tr_queue_read(&pod->queue, inbox, full);
    if (count < 0) {
        pod->error = count;
        return 0;
    }
    for (int index = 0; index < count; index++)
        worker->lines[1][index] =
            (struct tr_line){number_connection(worker, pod, &inbox->packets[index]), counts(&inbox->packets[index])};
    return count;
}

static void judge_batch(struct tr_worker *worker, struct tr_pod *pod, int count)
{
    struct tr_inbox *inbox = worker->inbox;
    const struct tr_line *lines = worker->lines[0];
    struct tr_instant now = {nanoseconds(CLOCK_MONOTONIC), (double)nanoseconds(CLOCK_REALTIME) / 1e9};
    tr_endpoint_lock(pod->endpoint);
    for (int index = 0; index < count; index++) {
        uint32_t connection = lines[index].connection;
        bool more = among(lines + index + 1, count - index - 1, connection) && !is_out_of_patience(worker, connection);
        judge_one(worker, pod, &inbox->packets[index], more, connection, &now);
        uint32_t room;
        tr_outbox_room(&worker->outbox, &room);
        if (room < TR_COPY_RANGE) { /* rare: a batch of large rewritten packets */
            put_marks_off(worker, lines + index + 1, count - index - 1, false);
            send_verdicts(worker, pod);
        }
    }
    count_deferred(worker);
    add_entropy(pod->endpoint);
    tr_endpoint_unlock(pod->endpoint);
}

/* The worker's lock is held. */
void tr_serve(struct tr_worker *worker, struct tr_pod *pod)
{
    bool full;
    int count = read_batch(worker, pod, &full);
    for (int round = 1; count > 0; round++) {
        struct tr_inbox *swapped = worker->inbox;
        worker->inbox = worker->next;
        worker->next = swapped;
        memcpy(worker->lines[0], worker->lines[1], (size_t)count * sizeof worker->lines[0][0]);
        judge_batch(worker, pod, count);
        count = 0;
        if (round == ROUNDS) {
            put_marks_off(worker, NULL, 0, true); /* who knows what waits */
        } else if (worker->accepted_count > 0) {
            count = read_batch(worker, pod, &full);
            put_marks_off(worker, worker->lines[1], count, false);
        }
        send_verdicts(worker, pod);
        if (round < ROUNDS && count == 0 && full) count = read_batch(worker, pod, &full);
    }
    if (pod->error != 0) { /* the kernel goes on as it does while nobody listens */
        epoll_ctl(worker->epoll, EPOLL_CTL_DEL, pod->queue.fd, NULL);
        pthread_mutex_lock(&pod->parking);
        pod->broken = true;
        eventfd_write(pod->wakeup, 1);
        pthread_mutex_unlock(&pod->parking);
    }
}
