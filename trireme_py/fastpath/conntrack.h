/* One question to the kernel's connection tracking: what did you make of this connection?
 * (include/uapi/linux/netfilter/nfnetlink_conntrack.h) */
#ifndef TRIREME_CONNTRACK_H
#define TRIREME_CONNTRACK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* The connection tracking of one network namespace. */
struct tr_conntrack {
    int fd; /* a netfilter netlink socket made in it */
    uint32_t sequence;
    pthread_mutex_t lock; /* of one question and its answer */
};

/* One direction of a connection; IPv4 addresses take the first four octets. Ports in host byte order. */
struct tr_direction {
    bool ipv6;
    uint8_t protocol;
    uint8_t source[16], destination[16];
    uint16_t source_port, destination_port;
};

/* Find the connection whose first packet was `original`, and what its replies look like. The kernel answers within the
 * call, so nothing is waited for. Returns 0; -ENOENT if there is none, or it was begun from the other end; -EAGAIN
 * without an answer; another negative errno. Any thread. */
int tr_conntrack_get(struct tr_conntrack *, const struct tr_direction *original, struct tr_direction *reply);

#endif
