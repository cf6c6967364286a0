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

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>

#include "pod.h"

#include "../../bench/never_parks.h"

enum { OUTBOX = 192 << 10, HEAD = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg), TURNS = 100 };
enum { PASS = 0x400000, ACCEPT = 0x810000 };
enum { OTHER = 0x0A010002, PORT = 40000 }; /* whose connection it is */

/* -- the engine ----------------------------------------------------------------------------------------------------- */

void tr_engine_receive(struct tr_endpoint *endpoint, const struct tr_packet *packet, const struct tr_instant *now, struct tr_result *result)
{
    (void)endpoint;
    (void)now;
    *result = (struct tr_result){.verdict = packet->data[packet->captured - 1] == 'A' ? TR_ACCEPT : TR_DROP};
    if (result->verdict == TR_ACCEPT && packet->more)
        *result = (struct tr_result){.verdict = TR_PASS, .deferred = true};
}

/* -- the kernel ----------------------------------------------------------------------------------------------------- */

static int kernel;
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
    kernel = ends[0];
    pod.worker = &worker;
    pod.queue = (struct tr_queue){.fd = ends[1], .number = 7};
    for (int class = 0; class < TR_PARK_ENTROPY; class++)
        pod.parked[class].last = &pod.parked[class].first;
}

static size_t put(uint8_t *at, uint16_t type, const void *value, size_t length)
{
    struct nlattr attribute = {.nla_len = (uint16_t)(sizeof attribute + length), .nla_type = type};

    memcpy(at, &attribute, sizeof attribute);
    memcpy(at + sizeof attribute, value, length);
    return (sizeof attribute + length + 3) & ~(size_t)3;
}

/* Have a TCP segment with one octet of data arrive from there at 10.1.0.3:80. */
static void arrive(uint32_t id, uint32_t source, uint16_t port, uint8_t what)
{
    struct nfqnl_msg_packet_hdr packet = {.packet_id = htonl(id), .hook = NF_INET_PRE_ROUTING};
    struct nlmsghdr head = {.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET};
    uint8_t message[256] = {0}, segment[41] = {[0] = 0x45, [3] = 41, [9] = 6, [16] = 10, 1, 0, 3, [23] = 80, [32] = 0x50, 0x10, [40] = what};
    uint32_t mark = 0;
    size_t used = HEAD;

    source = htonl(source);
    port = htons(port);
    memcpy(segment + 12, &source, sizeof source);
    memcpy(segment + 20, &port, sizeof port);
    used += put(message + used, NFQA_PACKET_HDR, &packet, sizeof packet);
    used += put(message + used, NFQA_MARK, &mark, sizeof mark);
    used += put(message + used, NFQA_PAYLOAD, segment, sizeof segment);
    head.nlmsg_len = (uint32_t)used;
    memcpy(message, &head, sizeof head);
    if (send(kernel, message, used, 0) < 0)
        abort();
}

/* The mark that packet `id` was let through with, of all that has been answered; 0: none. */
static uint32_t mark_of(uint32_t id)
{
    static uint8_t answers[OUTBOX];
    uint32_t found = 0;
    ssize_t length;

    while ((length = recv(kernel, answers, sizeof answers, MSG_DONTWAIT)) > 0)
        for (size_t at = 0; at < (size_t)length;) {
            struct nlmsghdr head;
            struct nfqnl_msg_verdict_hdr verdict;
            uint32_t mark;

            memcpy(&head, answers + at, sizeof head);
            memcpy(&verdict, answers + at + HEAD + sizeof(struct nlattr), sizeof verdict);
            if (ntohl(verdict.id) == id && ntohl(verdict.verdict) == NF_REPEAT) {
                memcpy(&mark, answers + at + HEAD + 2 * sizeof(struct nlattr) + sizeof verdict, sizeof mark);
                found = ntohl(mark);
            }
            at += head.nlmsg_len;
        }
    return found;
}

/* -- the cases ------------------------------------------------------------------------------------------------------ */

/* In each batch there is a packet that would set the mark, and then one from elsewhere, or of its own name, that never does. Print in which
 * turn the mark is set; 0: in none. */
static void mark_behind(uint32_t source, uint16_t port)
{
    uint32_t id = 0, mark = 0;
    int turn;

    for (turn = 1; turn <= TURNS && mark != ACCEPT; turn++) {
        arrive(++id, OTHER, PORT, 'A');
        arrive(id + TURNS, source, port, 'D');
        tr_serve(&worker, &pod);
        mark = mark_of(id);
        if (mark != PASS && mark != ACCEPT)
            abort();
    }
    printf("%d\n", mark == ACCEPT ? turn - 1 : 0);
}

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
    if (!strcmp(name, "same"))
        mark_behind(OTHER, PORT);
    else if (!strcmp(name, "alike"))
        mark_behind(OTHER ^ 0x80, PORT ^ 0x0180);
    else if (!strcmp(name, "broken"))
        broken();
    else
        return 2;
    return 0;
}
