/* The kernel's packet queue, spoken to directly (include/uapi/linux/netfilter/nfnetlink_queue.h).
 *
 * Packets are read and answered many at a time: one recvmmsg, one sendmsg. Framing is the kernel's, contents are
 * whoever's; every length is checked all the same. Nothing here knows threads, Python or what a verdict means.
 */
#ifndef TRIREME_NETLINK_H
#define TRIREME_NETLINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define TR_BATCH 64
/* Packets read by one system call. */
#define TR_COPY_RANGE 4096
/* Octets the kernel copies of a packet; longer ones are judged by their beginning and delivered whole. */
#define TR_MESSAGE_MAX (TR_COPY_RANGE + 512)
/* A packet and what the kernel says about it: some 200 octets of attributes. */

/* A packet that waits in a queue. */
struct tr_queued {
    const uint8_t *data;  /* from its IP header on; valid until the inbox is filled again */
    uint32_t captured;    /* octets at data */
    uint32_t id;          /* the kernel's number for it, by which it is answered */
    uint32_t mark;        /* its packet mark */
    uint8_t hook;         /* where it was caught: enum nf_inet_hooks */
};

/* Buffers for what one system call reads. Large: allocate it. */
struct tr_inbox {
    struct tr_queued packets[TR_BATCH];
    struct mmsghdr headers[TR_BATCH];
    struct iovec vectors[TR_BATCH];
    uint8_t messages[TR_BATCH][TR_MESSAGE_MAX];
};

/* What a socket told besides packets. */
struct tr_queue_errors {
    uint64_t refused;     /* verdicts that the kernel did not take: it has no packet of that number */
    uint64_t overruns;    /* times that the receive buffer was full; the kernel counts the packets */
    uint64_t malformed;   /* messages that make no sense */
};

/* An open queue. */
struct tr_queue {
    int fd;
    uint16_t number;
    struct tr_queue_errors errors;
};

/* Verdicts on their way to the kernel. */
struct tr_outbox {
    uint8_t *data;
    size_t size;
    size_t used;
};

/* Bind netfilter netlink socket `fd` to queue `number` of the network namespace that the socket was made in. `length`:
 * packets that may wait. Returns 0 or a negative errno; the socket stays the caller's. EBUSY: somebody holds it. */
int tr_queue_bind(struct tr_queue *queue, int fd, uint16_t number, uint32_t length);

/* Prepare an inbox for its first use. */
void tr_inbox_init(struct tr_inbox *inbox);

/* Read what waits, without waiting for it. Returns the number of packets, or a negative errno when the socket is of no
 * use any more. 0: nothing waits. `*full`: whether more may wait still. */
int tr_queue_read(struct tr_queue *queue, struct tr_inbox *inbox, bool *full);

/* Give an outbox room for `size` octets. Returns 0 or -ENOMEM. */
int tr_outbox_init(struct tr_outbox *outbox, size_t size);
void tr_outbox_free(struct tr_outbox *outbox);

/* Add a verdict (NF_DROP, NF_REPEAT, …). `mark` goes with every verdict but NF_DROP; `data` is the packet to put in the
 * place of the one that waits, or NULL. Returns false, and adds nothing, without room for it. `*marked`: where the mark
 * stands, in network byte order, for a change of mind before it is sent; NULL with NF_DROP. */
bool tr_outbox_add(struct tr_outbox *outbox, const struct tr_queue *queue, uint32_t id, uint32_t verdict, uint32_t mark,
                   const uint8_t *data, uint32_t length, uint32_t **marked);

/* Where the packet of the next verdict will stand, so that it can be made there and need not be copied; `room`: octets. */
uint8_t *tr_outbox_room(const struct tr_outbox *outbox, uint32_t *room);

/* Send what is in the outbox, and empty it. Returns 0 or a negative errno; none of the verdicts was given then. */
int tr_outbox_send(struct tr_outbox *outbox, struct tr_queue *queue);

#endif
