/* What a thread does with a pod's queue, case by case (tests/trireme_py/test_fast_threads.py): a socket pair stands for the kernel's queue,
 * and for the engine a function that goes by a packet's last octet.
 *
 *   queue_cases CASE     prints what the test wants to know */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pod.h"

enum { OUTBOX = 192 << 10 };
enum { PASS = 0x400000, ACCEPT = 0x810000 };

/* -- the engine ----------------------------------------------------------------------------------------------------- */

void tr_engine_receive(struct tr_endpoint *endpoint, const struct tr_packet *packet, const struct tr_instant *now, struct tr_result *result)
{
    (void)endpoint;
    (void)now;
    *result = (struct tr_result){.verdict = packet->data[packet->captured - 1] == 'A' ? TR_ACCEPT : TR_DROP};
    if (result->verdict == TR_ACCEPT && packet->more)
        result->verdict = TR_PASS;
}

void tr_endpoint_lock(struct tr_endpoint *endpoint)
{
    (void)endpoint;
}

void tr_endpoint_unlock(struct tr_endpoint *endpoint)
{
    (void)endpoint;
}

void tr_engine_count(struct tr_endpoint *endpoint, enum tr_reason reason, uint64_t packets)
{
    (void)endpoint;
    (void)reason;
    (void)packets;
    abort();
}

uint32_t tr_engine_hand_over(struct tr_endpoint *endpoint, const struct tr_packet *packet, uint8_t *out)
{
    (void)endpoint;
    (void)packet;
    (void)out;
    abort();
}

void tr_engine_returned(struct tr_endpoint *endpoint, const uint8_t *data, uint32_t captured, enum tr_hook hook)
{
    (void)endpoint;
    (void)data;
    (void)captured;
    (void)hook;
    abort();
}

uint32_t tr_engine_entropy_room(const struct tr_endpoint *endpoint)
{
    (void)endpoint;
    return 0;
}

void tr_engine_add_entropy(struct tr_endpoint *endpoint, const uint8_t *data, uint32_t nonces)
{
    (void)endpoint;
    (void)data;
    (void)nonces;
    abort();
}

/* -- the kernel ----------------------------------------------------------------------------------------------------- */

static struct tr_worker worker;
static struct tr_pod pod = {.marks = {0xFF0000, PASS, 0x410000, ACCEPT}, .parking = PTHREAD_MUTEX_INITIALIZER};

static void set_up(void)
{
    int ends[2];

    worker.inbox = malloc(sizeof *worker.inbox);
    worker.next = malloc(sizeof *worker.next);
    pod.wakeup = eventfd(0, EFD_NONBLOCK);
    if (!worker.inbox || !worker.next || tr_outbox_init(&worker.outbox, OUTBOX) != 0 || pod.wakeup < 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) != 0)
        abort();
    fair_lock_init(&worker.lock);
    tr_inbox_init(worker.inbox);
    tr_inbox_init(worker.next);
    worker.epoll = -1;
    pod.worker = &worker;
    pod.queue = (struct tr_queue){.fd = ends[1], .number = 7};
    for (int class = 0; class < TR_PARK_ENTROPY; class++)
        pod.parked[class].last = &pod.parked[class].first;
}

/* -- the cases ------------------------------------------------------------------------------------------------------ */

/* The socket ends after Python has asked for the queue's error and before it takes: whether it is told to ask again. */
static void broken(void)
{
    struct pollfd wakeup = {.fd = pod.wakeup, .events = POLLIN};
    int before = tr_pod_error(&pod);

    close(pod.queue.fd);
    tr_serve(&worker, &pod);
    if (tr_pod_take(&pod, 256))
        abort();
    printf("%d %d %d\n", before, poll(&wakeup, 1, 0), tr_pod_error(&pod) == -EBADF);
}

int main(int count, char **words)
{
    const char *name = count == 2 ? words[1] : "";

    set_up();
    if (!strcmp(name, "broken"))
        broken();
    else
        return 2;
    return 0;
}
