#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "pod.h"

#define OUTBOX_SIZE (192 << 10)
/* Octets: less than a socket's send buffer holds. */
#define STACK_SIZE (256 << 10)
#define NO_SLOT UINT32_MAX

struct tr_workers {
    unsigned count;
    pthread_mutex_t assigning;
    struct tr_worker workers[];
};

static void *run(void *argument)
{
    struct tr_worker *worker = argument;
    struct epoll_event events[64];
    for (;;) {
        int ready = epoll_wait(worker->epoll, events, 64, -1);
        for (int index = 0; index < ready; index++) {
            uint32_t slot = (uint32_t)events[index].data.u64, generation = (uint32_t)(events[index].data.u64 >> 32);
            if (slot == NO_SLOT) return NULL;
            fair_lock_take(&worker->lock);
            /* The pod may have gone since. */
            if (slot < worker->slot_count && worker->generations[slot] == generation && worker->slots[slot] != NULL)
                tr_serve(worker, worker->slots[slot]);
            fair_lock_release(&worker->lock);
        }
    }
}

/* -- life ----------------------------------------------------------------------------------------------------------- */

static void end_worker(struct tr_worker *worker)
{
    if (worker->started) {
        eventfd_write(worker->stop, 1);
        pthread_join(worker->thread, NULL);
    }
    if (worker->stop >= 0) close(worker->stop);
    if (worker->epoll >= 0) close(worker->epoll);
    tr_outbox_free(&worker->outbox);
    free(worker->inbox);
    free(worker->next);
    free(worker->slots);
    free(worker->generations);
    fair_lock_destroy(&worker->lock);
}

static int begin_worker(struct tr_worker *worker, unsigned number)
{
    pthread_attr_t attributes;
    char name[32]; /* the kernel takes 15 octets */
    fair_lock_init(&worker->lock);
    worker->inbox = malloc(sizeof *worker->inbox);
    worker->next = malloc(sizeof *worker->next);
    worker->epoll = epoll_create1(EPOLL_CLOEXEC);
    worker->stop = eventfd(0, EFD_CLOEXEC);
    struct epoll_event stop = {.events = EPOLLIN, .data.u64 = NO_SLOT};
    if (worker->epoll < 0 || worker->stop < 0 ||
        epoll_ctl(worker->epoll, EPOLL_CTL_ADD, worker->stop, &stop) != 0)
        return errno;
    if (getrandom(worker->seed, sizeof worker->seed, 0) != sizeof worker->seed) return EIO;
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
        workers->workers[workers->count].epoll = workers->workers[workers->count].stop = -1;
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

static int find_slot(struct tr_worker *worker, struct tr_pod *pod)
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
    struct tr_worker *least = &workers->workers[0];
    pthread_mutex_lock(&workers->assigning);
    for (unsigned index = 1; index < workers->count; index++)
        if (workers->workers[index].pods < least->pods) least = &workers->workers[index];
    fair_lock_take(&least->lock);
    int error = find_slot(least, pod);
    if (error == 0) {
        struct epoll_event event = {.events = EPOLLIN};
        event.data.u64 = (uint64_t)least->generations[pod->slot] << 32 | pod->slot;
        if (epoll_ctl(least->epoll, EPOLL_CTL_ADD, pod->queue.fd, &event) == 0) least->pods++, pod->worker = least;
        else error = errno, least->slots[pod->slot] = NULL;
    }
    fair_lock_release(&least->lock);
    pthread_mutex_unlock(&workers->assigning);
    return error;
}

struct tr_pod *tr_pod_new(int fd, uint16_t number, const struct tr_marks *marks, bool foreign_passes)
{
    struct tr_pod *pod = calloc(1, sizeof *pod);
    int error = ENOMEM;
    if (pod != NULL) {
        pod->marks = *marks;
        pod->foreign_passes = foreign_passes;
        pthread_mutex_init(&pod->parking, NULL);
        for (int class = 0; class < TR_PARK_ENTROPY; class++) pod->parked[class].last = &pod->parked[class].first;
        pod->wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        error = pod->wakeup < 0 ? errno : -tr_queue_bind(&pod->queue, fd, number, TR_QUEUE_LENGTH);
        if (error == 0) return pod;
        if (pod->wakeup >= 0) close(pod->wakeup);
        pthread_mutex_destroy(&pod->parking);
        free(pod);
    }
    close(fd);
    errno = error;
    return NULL;
}

int tr_pod_start(struct tr_pod *pod, struct tr_workers *workers, struct tr_endpoint *endpoint)
{
    pod->endpoint = endpoint;
    return -assign(workers, pod);
}

void tr_pod_free(struct tr_pod *pod)
{
    struct tr_worker *worker = pod->worker;
    if (worker != NULL) {
        fair_lock_take(&worker->lock);
        epoll_ctl(worker->epoll, EPOLL_CTL_DEL, pod->queue.fd, NULL);
        worker->slots[pod->slot] = NULL;
        worker->pods--;
        fair_lock_release(&worker->lock);
    }
    close(pod->queue.fd);
    close(pod->wakeup);
    for (int class = 0; class < TR_PARK_ENTROPY; class++)
        while (pod->parked[class].first != NULL) free(tr_take_first(&pod->parked[class]));
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
    if (pod->worker != NULL) fair_lock_take(&pod->worker->lock);
    pod->marks.accept = accept;
    if (pod->worker != NULL) fair_lock_release(&pod->worker->lock);
}

struct tr_parked *tr_pod_take(struct tr_pod *pod, size_t most)
{
    struct tr_parked *first = NULL, **last = &first;
    pthread_mutex_lock(&pod->parking);
    for (int class = 0; class < TR_PARK_ENTROPY; class++)
        for (; pod->parked[class].first != NULL && most > 0; most--) {
            *last = tr_take_first(&pod->parked[class]);
            last = &(*last)->next;
            pod->waiting--;
        }
    *last = NULL;
    if (pod->waiting == 0 && !pod->broken) {
        eventfd_t count;
        eventfd_read(pod->wakeup, &count);
    }
    pthread_mutex_unlock(&pod->parking);
    return first;
}

void tr_pod_poll(struct tr_pod *pod)
{
    fair_lock_take(&pod->worker->lock);
    if (pod->error == 0) tr_serve(pod->worker, pod);
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
    if (pod->worker != NULL) fair_lock_take(&pod->worker->lock);
    *counters = pod->counters;
    counters->refused += pod->queue.errors.refused;
    counters->malformed += pod->queue.errors.malformed;
    if (pod->worker != NULL) fair_lock_release(&pod->worker->lock);
}
