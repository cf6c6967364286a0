/* The answer of connection tracking, on any octets: it is read within its bounds, and believed about the connection asked for only. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>

#include "conntrack.h"

enum { LONGEST = 4096, HEAD = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg) };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tr_conntrack conntrack = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct tr_direction asked = {.protocol = 6, .source = {10, 1, 0, 2}, .destination = {10, 96, 0, 1}}, reply;
    uint8_t message[HEAD + LONGEST] = {0}, question[512];
    struct nlmsghdr head = {.nlmsg_seq = 1};
    int ends[2];

    if (size < 1 || size > LONGEST)
        return 0;
    asked.source_port = 1000;
    asked.destination_port = 80;
    asked.ipv6 = data[0] & 1;
    head.nlmsg_type = data[0] & 2 ? NLMSG_ERROR : NFNL_SUBSYS_CTNETLINK << 8;
    head.nlmsg_len = (uint32_t)(HEAD + size - 1 + (data[0] & 4 ? data[0] >> 3 : 0));
    memcpy(message, &head, sizeof head);
    memcpy(message + HEAD, data + 1, size - 1);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) != 0)
        abort();
    conntrack.fd = ends[1];
    if (send(ends[0], message, HEAD + size - 1, 0) < 0)
        abort();
    if (tr_conntrack_get(&conntrack, &asked, &reply) > 0)
        abort();
    if (recv(ends[0], question, sizeof question, 0) < HEAD)
        abort();
    close(ends[0]);
    close(ends[1]);
    return 0;
}
