/* What a thread does with the kernel's messages: read, judge, park, answer. The input is a program: messages, well-formed or not, that
 * wait in the queue's socket together, and turns of the thread. In the engine's place is a function that decides by a packet's last octet. */
#include <errno.h>
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

enum { MOST = 80, OUTBOX = 192 << 10, HEAD = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg) };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tr_worker *worker;

/* -- the engine ----------------------------------------------------------------------------------------------------- */

/* Whether these octets are all of one message. */
static bool were_read(const uint8_t *data, uint32_t captured)
{
    const struct tr_inbox *inbox = worker->inbox;

    for (int index = 0; index < TR_BATCH; index++) {
        const uint8_t *message = inbox->messages[index];

        if (data >= message && data <= message + inbox->headers[index].msg_len)
            return data + captured <= message + inbox->headers[index].msg_len;
    }
    return false;
}

void tr_engine_receive(struct tr_endpoint *endpoint, const struct tr_packet *packet, const struct tr_instant *now, struct tr_result *result)
{
    uint8_t what = packet->captured ? packet->data[packet->captured - 1] : 0;

    (void)endpoint;
    (void)now;
    if (!were_read(packet->data, packet->captured))
        abort();
    *result = (struct tr_result){.verdict = what % 5, .park = what / 5 % TR_PARKS};
    if (result->verdict == TR_ACCEPT && packet->more)
        *result = (struct tr_result){.verdict = TR_PASS, .deferred = true};
    if (result->verdict <= TR_ACCEPT && what & 0x80 && packet->room >= TR_ROOM) {
        result->length = 1 + what % TR_ROOM;
        memset(packet->out, what, result->length);
    }
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
    if (reason >= TR_REASONS || packets != 1)
        abort();
}

uint32_t tr_engine_hand_over(struct tr_endpoint *endpoint, const struct tr_packet *packet, uint8_t *out)
{
    uint32_t length = packet->captured % 8 ? 0 : packet->captured;

    (void)endpoint;
    memset(out, 1, length);
    return length;
}

void tr_engine_returned(struct tr_endpoint *endpoint, const uint8_t *data, uint32_t captured, enum tr_hook hook)
{
    (void)endpoint;
    (void)data;
    (void)captured;
    (void)hook;
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
}

/* -- the kernel ----------------------------------------------------------------------------------------------------- */

static size_t put(uint8_t *at, uint16_t type, const void *value, size_t length)
{
    struct nlattr attribute = {.nla_len = (uint16_t)(sizeof attribute + length), .nla_type = type};

    memcpy(at, &attribute, sizeof attribute);
    memcpy(at + sizeof attribute, value, length);
    return (sizeof attribute + length + 3) & ~(size_t)3;
}

static uint8_t next(const uint8_t **at, const uint8_t *end)
{
    return *at < end ? *(*at)++ : 0;
}

/* A packet's message as the kernel makes it. Returns its length. */
static size_t make_packet(uint8_t *message, uint32_t id, const uint8_t **at, const uint8_t *end)
{
    static const uint8_t hooks[] = {NF_INET_PRE_ROUTING, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT};
    struct nfqnl_msg_packet_hdr packet = {.packet_id = htonl(id), .hook = hooks[next(at, end) % 4]};
    struct nlmsghdr head = {.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET};
    uint32_t mark = htonl(id), times = next(at, end) & 0x80 ? 16 : 1;
    size_t length = next(at, end), used = HEAD, left = (size_t)(end - *at);
    uint8_t payload[255 * 16];

    if (length > left)
        length = left;
    for (uint32_t index = 0; index < times; index++) /* some are long */
        memcpy(payload + index * length, *at, length);
    *at += length;
    memset(message, 0, HEAD);
    used += put(message + used, NFQA_PACKET_HDR, &packet, sizeof packet);
    used += put(message + used, NFQA_MARK, &mark, sizeof mark);
    used += put(message + used, NFQA_PAYLOAD, payload, length * times);
    head.nlmsg_len = (uint32_t)used;
    memcpy(message, &head, sizeof head);
    return used;
}

/* Whatever octets, behind a header that says packet. */
static size_t make_nonsense(uint8_t *message, const uint8_t **at, const uint8_t *end)
{
    struct nlmsghdr head = {.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET};
    uint8_t how = next(at, end);
    size_t length = next(at, end), left = (size_t)(end - *at);

    if (length > left)
        length = left;
    head.nlmsg_len = (uint32_t)(HEAD + length + (how & 1 ? how >> 1 : 0));
    memset(message, 0, HEAD);
    memcpy(message + (how & 2 ? 0 : HEAD), *at, length);
    if (!(how & 2))
        memcpy(message, &head, sizeof head);
    *at += length;
    return how & 2 ? length : HEAD + length;
}

/* Read what was answered, as strictly as the kernel does. Returns how many verdicts there were. */
static uint64_t read_verdicts(int kernel)
{
    static uint8_t answers[OUTBOX];
    uint64_t verdicts = 0;
    ssize_t length;

    while ((length = recv(kernel, answers, sizeof answers, MSG_DONTWAIT)) > 0)
        for (size_t at = 0; at < (size_t)length; verdicts++) {
            struct nlmsghdr head;

            if ((size_t)length - at < HEAD + sizeof(struct nlattr))
                abort();
            memcpy(&head, answers + at, sizeof head);
            if (head.nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT) || head.nlmsg_len % 4 || head.nlmsg_len > (size_t)length - at)
                abort();
            for (size_t inner = at + HEAD; inner < at + head.nlmsg_len;) {
                struct nlattr attribute;

                memcpy(&attribute, answers + inner, sizeof attribute);
                if (attribute.nla_len < sizeof attribute || attribute.nla_len > at + head.nlmsg_len - inner)
                    abort();
                inner += (attribute.nla_len + 3u) & ~3u;
            }
            at += head.nlmsg_len;
        }
    return verdicts;
}

/* -- the program ---------------------------------------------------------------------------------------------------- */

static void make_worker(void)
{
    worker = calloc(1, sizeof *worker);
    if (!worker || !(worker->inbox = malloc(sizeof *worker->inbox)) || !(worker->next = malloc(sizeof *worker->next)) ||
        tr_outbox_init(&worker->outbox, OUTBOX) != 0)
        abort();
    fair_lock_init(&worker->lock);
    tr_inbox_init(worker->inbox);
    tr_inbox_init(worker->next);
    worker->epoll = -1;
}

/* What Python does: take, answer. Returns how many verdicts there were. */
static uint64_t answer_parked(struct tr_pod *pod, int kernel)
{
    struct tr_parked *next, *parked = tr_pod_take(pod, SIZE_MAX);
    uint64_t verdicts = 0;

    for (; parked; parked = next) {
        next = parked->next;
        if (tr_pod_answer(pod, parked->id, NF_REPEAT, parked->mark, parked->data, parked->captured) != 0)
            abort();
        verdicts += read_verdicts(kernel);
        free(parked);
    }
    return verdicts;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t message[TR_MESSAGE_MAX];
    const uint8_t *at = data, *end = data + size;
    const struct tr_marks marks = {0xFF0000, 0x400000, 0x410000, 0x810000};
    struct tr_pod pod = {.marks = marks, .parking = PTHREAD_MUTEX_INITIALIZER, .wakeup = eventfd(0, EFD_NONBLOCK)};
    int ends[2], room = 1 << 20;
    uint64_t verdicts = 0;
    uint32_t id = 0;

    if (!worker)
        make_worker();
    memset(worker->put_off, 0, sizeof worker->put_off);
    if (pod.wakeup < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) != 0)
        abort();
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    pod.worker = worker;
    pod.queue = (struct tr_queue){.fd = ends[1], .number = 7};
    for (int class = 0; class < TR_PARK_ENTROPY; class++)
        pod.parked[class].last = &pod.parked[class].first;
    while (at < end) {
        int most = next(&at, end) % MOST; /* messages that wait together */

        for (int count = 0; count <= most && at < end; count++) {
            size_t length = next(&at, end) & 1 ? make_nonsense(message, &at, end) : make_packet(message, ++id, &at, end);

            if (length && send(ends[0], message, length, 0) < 0 && errno != EAGAIN)
                abort();
        }
        tr_serve(worker, &pod);
        if (pod.error != 0 || worker->outbox.used != 0 || worker->accepted_count != 0)
            abort();
        verdicts += read_verdicts(ends[0]);
        verdicts += answer_parked(&pod, ends[0]);
    }
    /* Each packet has had one verdict, whoever gave it. */
    if (verdicts != pod.counters.packets[0] + pod.counters.packets[1] + pod.counters.foreign)
        abort();
    close(ends[0]);
    close(ends[1]);
    close(pod.wakeup);
    return 0;
}
