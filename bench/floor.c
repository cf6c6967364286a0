/* The queue's floor: what a packet queue costs when everything is accepted untouched.
 *
 *   floor THREADS NAMESPACE_FILE…
 *
 * The fast path's own threads and system calls, and the same verdicts and marks for the same packets, but in place of the
 * engine a function that looks at two octets, and at a datagram's ports. Serves queue 7 of each namespace until its input ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>

#include "../trireme_py/fastpath/worker.h"
#include "never_parks.h"

#define QUEUE 7
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define FLAG_SYN 2
#define QUESTION_AND_ANSWER 4
#define MARKED_AT_BOTH_ENDS 6

/* A question and its answer pass the queues of both ends; when the flow goes on, either end marks it. */
static bool goes_on(const uint8_t *ports)
{
    static uint8_t passed[1 << 16]; /* by the client's port: how many passes of its flow */
    unsigned one = ports[0] << 8 | ports[1], other = ports[2] << 8 | ports[3];
    uint8_t *count = &passed[one > other ? one : other];

    *count = *count % MARKED_AT_BOTH_ENDS + 1;
    return *count > QUESTION_AND_ANSWER;
}

void tr_engine_receive(struct tr_endpoint *endpoint, const struct tr_packet *packet, const struct tr_instant *now,
                       struct tr_result *result)
{
    (void)endpoint;
    (void)now;
    const uint8_t *data = packet->data;
    uint32_t head = data[0] >> 4 == 4 ? (data[0] & 15u) * 4u : 40;
    uint8_t protocol = data[0] >> 4 == 4 ? data[9] : data[6];
    *result = (struct tr_result){.verdict = TR_ACCEPT};
    if (protocol == PROTOCOL_TCP && packet->captured > head + 13 && data[head + 13] & FLAG_SYN)
        result->verdict = TR_PASS_CLEAR;
    if (protocol == PROTOCOL_UDP && packet->captured > head + 3 && !goes_on(data + head)) result->verdict = TR_PASS;
    if (result->verdict == TR_ACCEPT && packet->more) *result = (struct tr_result){.verdict = TR_PASS, .deferred = true};
}

static void fail(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_inside(const char *namespace)
{
    int there = open(namespace, O_RDONLY | O_CLOEXEC);
    if (there < 0 || setns(there, CLONE_NEWNET) != 0) fail(namespace);
    close(there);
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (fd < 0) fail("netlink socket");
    return fd;
}

int main(int count, char **words)
{
    static const struct tr_marks marks = {0xFF0000, 0x400000, 0x410000, 0x810000};
    if (count < 3) {
        fprintf(stderr, "usage: floor THREADS NAMESPACE_FILE…\n");
        return 2;
    }
    struct tr_workers *workers = tr_workers_new((unsigned)atoi(words[1]));
    if (workers == NULL) fail("threads");
    for (int index = 2; index < count; index++) {
        struct tr_pod *pod = tr_pod_new(open_inside(words[index]), QUEUE, &marks, false);
        if (pod == NULL || tr_pod_start(pod, workers, NULL) != 0) fail(words[index]);
    }
    printf("{\"ready\": 1}\n");
    fflush(stdout);
    char end;
    while (read(0, &end, 1) > 0) continue;
    return 0;
}
