#include "netlink.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>

#define RECEIVE_BUFFER (16 << 20)
/* Octets. An exchange's packet takes about 2.5 kB of it while it waits to be read. */
#define SEND_BUFFER (1 << 20)
/* Octets. The verdicts of a whole batch with packets in them are one message. */
#define ANSWER_PATIENCE_MS 2000
/* The kernel answers within the system call that asks. */

#define MESSAGE_HEAD (sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg))
#define ALIGNED(length) (((length) + 3u) & ~(size_t)3u)

static uint16_t message_type(uint8_t type)
{
    return (uint16_t)(NFNL_SUBSYS_QUEUE << 8 | type);
}

static uint8_t *put_head(uint8_t *at, uint16_t type, uint16_t flags, uint16_t number)
{
    struct nlmsghdr head = {.nlmsg_len = MESSAGE_HEAD, .nlmsg_type = type, .nlmsg_flags = flags};
    struct nfgenmsg family = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(number)};
    memcpy(at, &head, sizeof head);
    memcpy(at + sizeof head, &family, sizeof family);
    return at + MESSAGE_HEAD;
}

static uint8_t *put_attribute(uint8_t *at, uint16_t type, const void *value, size_t length)
{
    struct nlattr attribute = {.nla_len = (uint16_t)(sizeof attribute + length), .nla_type = type};
    memcpy(at, &attribute, sizeof attribute);
    if (value != at + sizeof attribute) memcpy(at + sizeof attribute, value, length);
    size_t padded = ALIGNED(length);
    memset(at + sizeof attribute + length, 0, padded - length);
    return at + sizeof attribute + padded;
}

static void close_message(uint8_t *start, const uint8_t *end)
{
    uint32_t length = (uint32_t)(end - start);
    memcpy(start, &length, sizeof length);
}

/* -- set-up ------------------------------------------------------------------------------------------------------- */

/* Wait for the kernel's answer to a configuration message, past packets that are in its way. */
static int await_answer(int fd)
{
    uint8_t answer[TR_MESSAGE_MAX];
    for (;;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        int events = poll(&ready, 1, ANSWER_PATIENCE_MS);
        if (events < 0 && errno != EINTR) return -errno;
        if (events == 0) return -ETIMEDOUT;
        ssize_t length = recv(fd, answer, sizeof answer, MSG_DONTWAIT);
        if (length < 0) {
            if (errno == EINTR || errno == EAGAIN || errno == ENOBUFS) continue;
            return -errno;
        }
        struct nlmsghdr head;
        struct nlmsgerr error;
        if ((size_t)length < sizeof head + sizeof error) continue;
        memcpy(&head, answer, sizeof head);
        if (head.nlmsg_type != NLMSG_ERROR) continue;
        memcpy(&error, answer + sizeof head, sizeof error);
        return error.error;
    }
}

static int configure(int fd, uint16_t number, uint16_t attribute, const void *value, size_t length)
{
    uint8_t message[MESSAGE_HEAD + 64];
    uint8_t *end = put_head(message, message_type(NFQNL_MSG_CONFIG), NLM_F_REQUEST | NLM_F_ACK, number);
    end = put_attribute(end, attribute, value, length);
    if (attribute == NFQA_CFG_FLAGS) {
        /* Packets are not let through because the queue is full, and an aggregate is cut up and has its checksum
         * completed before we see it: no packet of an exchange is one. */
        uint32_t mask = htonl(NFQA_CFG_F_FAIL_OPEN | NFQA_CFG_F_GSO);
        end = put_attribute(end, NFQA_CFG_MASK, &mask, sizeof mask);
    }
    close_message(message, end);
    if (send(fd, message, (size_t)(end - message), 0) < 0) return -errno;
    return await_answer(fd);
}

/* Ask for `octets` of a socket's buffer. Root of a user namespace gets what net.core allows. */
static int set_buffer(int fd, int forced, int asked, int octets)
{
    if (setsockopt(fd, SOL_SOCKET, forced, &octets, sizeof octets) == 0) return 0;
    if (errno != EPERM) return -errno;
    return setsockopt(fd, SOL_SOCKET, asked, &octets, sizeof octets) == 0 ? 0 : -errno;
}

int tr_queue_bind(struct tr_queue *queue, int fd, uint16_t number, uint32_t length)
{
    memset(queue, 0, sizeof *queue);
    queue->fd = fd;
    queue->number = number;
    struct nfqnl_msg_config_cmd command = {.command = NFQNL_CFG_CMD_BIND};
    struct nfqnl_msg_config_params copy = {.copy_range = htonl(TR_COPY_RANGE), .copy_mode = NFQNL_COPY_PACKET};
    uint32_t most = htonl(length), flags = 0;
    int yes = 1, error;
    if ((error = set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, RECEIVE_BUFFER)) != 0 ||
        (error = set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, SEND_BUFFER)) != 0)
        return error;
    /* A full buffer costs the packet that does not fit, which the kernel counts, and not all that come until the
     * buffer is empty. */
    if (setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &yes, sizeof yes) != 0) return -errno;
    if ((error = configure(fd, number, NFQA_CFG_CMD, &command, sizeof command)) != 0 ||
        (error = configure(fd, number, NFQA_CFG_QUEUE_MAXLEN, &most, sizeof most)) != 0 ||
        (error = configure(fd, number, NFQA_CFG_FLAGS, &flags, sizeof flags)) != 0)
        return error;
    /* Last: from now on packets come. */
    return configure(fd, number, NFQA_CFG_PARAMS, &copy, sizeof copy);
}

/* -- packets ------------------------------------------------------------------------------------------------------ */

void tr_inbox_init(struct tr_inbox *inbox)
{
    for (size_t index = 0; index < TR_BATCH; index++) {
        inbox->vectors[index] = (struct iovec){inbox->messages[index], TR_MESSAGE_MAX};
        memset(&inbox->headers[index], 0, sizeof inbox->headers[index]);
        inbox->headers[index].msg_hdr.msg_iov = &inbox->vectors[index];
        inbox->headers[index].msg_hdr.msg_iovlen = 1;
    }
}

/* Read the attributes of a packet message. Returns false without the two that make it one. */
static bool parse_packet(const uint8_t *at, size_t left, struct tr_queued *packet)
{
    bool numbered = false, filled = false;
    packet->mark = 0;
    while (left >= sizeof(struct nlattr)) {
        struct nlattr attribute;
        memcpy(&attribute, at, sizeof attribute);
        if (attribute.nla_len < sizeof attribute || attribute.nla_len > left) return false;
        const uint8_t *value = at + sizeof attribute;
        size_t length = attribute.nla_len - sizeof attribute;
        switch (attribute.nla_type & NLA_TYPE_MASK) {
        case NFQA_PACKET_HDR: {
            struct nfqnl_msg_packet_hdr head;
            if (length < sizeof head) return false;
            memcpy(&head, value, sizeof head);
            packet->id = ntohl(head.packet_id);
            packet->hook = head.hook;
            numbered = true;
            break;
        }
        case NFQA_MARK:
            if (length < sizeof packet->mark) return false;
            memcpy(&packet->mark, value, sizeof packet->mark);
            packet->mark = ntohl(packet->mark);
            break;
        case NFQA_PAYLOAD:
            packet->data = value;
            packet->captured = (uint32_t)length;
            filled = true;
            break;
        default:
            break;
        }
        size_t step = ALIGNED(attribute.nla_len);
        if (step >= left) break;
        at += step;
        left -= step;
    }
    return numbered && filled;
}

/* Read one message of the kernel. Returns whether it is a packet. */
static bool parse_message(struct tr_queue *queue, const uint8_t *data, size_t length, struct tr_queued *packet)
{
    struct nlmsghdr head;
    if (length < sizeof head) {
        queue->errors.malformed++;
        return false;
    }
    memcpy(&head, data, sizeof head);
    if (head.nlmsg_type == NLMSG_ERROR) {
        queue->errors.refused++;
        return false;
    }
    if (head.nlmsg_type != message_type(NFQNL_MSG_PACKET) || head.nlmsg_len < MESSAGE_HEAD || head.nlmsg_len > length ||
        !parse_packet(data + MESSAGE_HEAD, head.nlmsg_len - MESSAGE_HEAD, packet)) {
        queue->errors.malformed++;
        return false;
    }
    return true;
}

int tr_queue_read(struct tr_queue *queue, struct tr_inbox *inbox, bool *full)
{
    int read = recvmmsg(queue->fd, inbox->headers, TR_BATCH, MSG_DONTWAIT, NULL);
    *full = read == TR_BATCH;
    if (read < 0) {
        if (errno == EAGAIN || errno == EINTR) return 0;
        if (errno == ENOBUFS) {
            queue->errors.overruns++;
            *full = true;
            return 0;
        }
        return -errno;
    }
    int packets = 0;
    for (int index = 0; index < read; index++)
        if (parse_message(queue, inbox->messages[index], inbox->headers[index].msg_len, &inbox->packets[packets]))
            packets++;
    return packets;
}

/* -- verdicts ----------------------------------------------------------------------------------------------------- */

int tr_outbox_init(struct tr_outbox *outbox, size_t size)
{
    *outbox = (struct tr_outbox){.data = malloc(size), .size = size};
    return outbox->data == NULL ? -ENOMEM : 0;
}

void tr_outbox_free(struct tr_outbox *outbox)
{
    free(outbox->data);
    *outbox = (struct tr_outbox){0};
}

static size_t verdict_size(uint32_t length)
{
    size_t size = MESSAGE_HEAD + sizeof(struct nlattr) + sizeof(struct nfqnl_msg_verdict_hdr);
    size += sizeof(struct nlattr) + sizeof(uint32_t);
    return length == 0 ? size : size + sizeof(struct nlattr) + ALIGNED(length);
}

bool tr_outbox_add(struct tr_outbox *outbox, const struct tr_queue *queue, uint32_t id, uint32_t verdict, uint32_t mark,
                   const uint8_t *data, uint32_t length, uint32_t **marked)
{
    if (data == NULL) length = 0;
    if (length > UINT16_MAX - sizeof(struct nlattr) || verdict_size(length) > outbox->size - outbox->used) return false;
    uint8_t *start = outbox->data + outbox->used;
    struct nfqnl_msg_verdict_hdr answer = {.verdict = htonl(verdict), .id = htonl(id)};
    uint8_t *end = put_head(start, message_type(NFQNL_MSG_VERDICT), NLM_F_REQUEST, queue->number);
    end = put_attribute(end, NFQA_VERDICT_HDR, &answer, sizeof answer);
    *marked = NULL;
    if (verdict != NF_DROP) {
        mark = htonl(mark);
        *marked = (uint32_t *)(void *)(end + sizeof(struct nlattr)); /* everything here is a multiple of four octets */
        end = put_attribute(end, NFQA_MARK, &mark, sizeof mark);
        if (length != 0) end = put_attribute(end, NFQA_PAYLOAD, data, length);
    }
    close_message(start, end);
    outbox->used += (size_t)(end - start);
    return true;
}

uint8_t *tr_outbox_room(const struct tr_outbox *outbox, uint32_t *room)
{
    size_t head = verdict_size(0) + sizeof(struct nlattr), left = outbox->size - outbox->used;
    *room = left > head ? (uint32_t)(left - head) & ~3u : 0;
    return outbox->data + outbox->used + head;
}

int tr_outbox_send(struct tr_outbox *outbox, struct tr_queue *queue)
{
    if (outbox->used == 0) return 0;
    int error = 0;
    while (send(queue->fd, outbox->data, outbox->used, 0) < 0) {
        if (errno == EINTR) continue;
        error = -errno;
        break;
    }
    outbox->used = 0;
    return error;
}
