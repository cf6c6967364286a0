#include "conntrack.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>

#define MESSAGE_HEAD (sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg))
#define ALIGNED(length) (((length) + 3u) & ~(size_t)3u)
#define ANSWER_MAX 4096
/* An entry with its counters, timestamps and helpers takes some 400 octets. */
#define STALE_MAX 16
/* Answers to earlier questions that nobody waited for. */

/* -- the question --------------------------------------------------------------------------------------------------- */

static uint8_t *put(uint8_t *at, uint16_t type, const void *value, size_t length)
{
    struct nlattr attribute = {.nla_len = (uint16_t)(sizeof attribute + length), .nla_type = type};
    memcpy(at, &attribute, sizeof attribute);
    memset(at + sizeof attribute, 0, ALIGNED(length));
    memcpy(at + sizeof attribute, value, length);
    return at + sizeof attribute + ALIGNED(length);
}

static uint8_t *open_nest(uint8_t *at)
{
    return at + sizeof(struct nlattr);
}

static void close_nest(uint8_t *at, const uint8_t *end, uint16_t type)
{
    struct nlattr attribute = {.nla_len = (uint16_t)(end - at), .nla_type = (uint16_t)(type | NLA_F_NESTED)};
    memcpy(at, &attribute, sizeof attribute);
}

static uint8_t *put_direction(uint8_t *at, const struct tr_direction *one)
{
    size_t length = one->ipv6 ? 16 : 4;
    uint16_t source_port = htons(one->source_port), destination_port = htons(one->destination_port);
    uint8_t *tuple = at, *inner;
    at = inner = open_nest(tuple);
    at = open_nest(at);
    at = put(at, one->ipv6 ? CTA_IP_V6_SRC : CTA_IP_V4_SRC, one->source, length);
    at = put(at, one->ipv6 ? CTA_IP_V6_DST : CTA_IP_V4_DST, one->destination, length);
    close_nest(inner, at, CTA_TUPLE_IP);
    inner = at;
    at = open_nest(at);
    at = put(at, CTA_PROTO_NUM, &one->protocol, sizeof one->protocol);
    at = put(at, CTA_PROTO_SRC_PORT, &source_port, sizeof source_port);
    at = put(at, CTA_PROTO_DST_PORT, &destination_port, sizeof destination_port);
    close_nest(inner, at, CTA_TUPLE_PROTO);
    close_nest(tuple, at, CTA_TUPLE_ORIG);
    return at;
}

static int ask(int fd, uint32_t sequence, const struct tr_direction *original)
{
    uint8_t message[256];
    struct nfgenmsg family = {.nfgen_family = original->ipv6 ? AF_INET6 : AF_INET, .version = NFNETLINK_V0};
    uint8_t *end = put_direction(message + MESSAGE_HEAD, original);
    struct nlmsghdr head = {
        .nlmsg_len = (uint32_t)(end - message),
        .nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
        .nlmsg_flags = NLM_F_REQUEST,
        .nlmsg_seq = sequence,
    };
    memcpy(message, &head, sizeof head);
    memcpy(message + sizeof head, &family, sizeof family);
    return send(fd, message, head.nlmsg_len, MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* -- the answer ----------------------------------------------------------------------------------------------------- */

/* A run of attributes, or the value of one. */
struct span {
    const uint8_t *data;
    size_t length;
};

/* Find an attribute among others; its value is empty without one. */
static struct span find(struct span among, uint16_t type)
{
    while (among.length >= sizeof(struct nlattr)) {
        struct nlattr attribute;
        memcpy(&attribute, among.data, sizeof attribute);
        if (attribute.nla_len < sizeof attribute || attribute.nla_len > among.length) break;
        if ((attribute.nla_type & NLA_TYPE_MASK) == type)
            return (struct span){among.data + sizeof attribute, attribute.nla_len - sizeof attribute};
        size_t step = ALIGNED(attribute.nla_len);
        if (step >= among.length) break;
        among.data += step;
        among.length -= step;
    }
    return (struct span){among.data, 0};
}

static bool copy(struct span among, uint16_t type, void *to, size_t length)
{
    struct span value = find(among, type);
    if (value.length != length) return false;
    memcpy(to, value.data, length);
    return true;
}

static bool parse_direction(struct span tuple, struct tr_direction *one)
{
    struct span address = find(tuple, CTA_TUPLE_IP), protocol = find(tuple, CTA_TUPLE_PROTO);
    memset(one, 0, sizeof *one);
    one->ipv6 = find(address, CTA_IP_V6_SRC).length != 0;
    size_t length = one->ipv6 ? 16 : 4;
    if (!copy(address, one->ipv6 ? CTA_IP_V6_SRC : CTA_IP_V4_SRC, one->source, length) ||
        !copy(address, one->ipv6 ? CTA_IP_V6_DST : CTA_IP_V4_DST, one->destination, length) ||
        !copy(protocol, CTA_PROTO_NUM, &one->protocol, sizeof one->protocol) ||
        !copy(protocol, CTA_PROTO_SRC_PORT, &one->source_port, sizeof one->source_port) ||
        !copy(protocol, CTA_PROTO_DST_PORT, &one->destination_port, sizeof one->destination_port))
        return false;
    one->source_port = ntohs(one->source_port);
    one->destination_port = ntohs(one->destination_port);
    return true;
}

static bool same(const struct tr_direction *one, const struct tr_direction *other)
{
    return one->ipv6 == other->ipv6 && one->protocol == other->protocol && one->source_port == other->source_port &&
           one->destination_port == other->destination_port &&
           memcmp(one->source, other->source, sizeof one->source) == 0 &&
           memcmp(one->destination, other->destination, sizeof one->destination) == 0;
}

/* Read the answer to question `number`. The lock is held. */
static int read_answer(int fd, uint32_t number, struct tr_direction *original, struct tr_direction *reply)
{
    for (int stale = 0; stale < STALE_MAX; stale++) {
        uint8_t answer[ANSWER_MAX];
        ssize_t length = recv(fd, answer, sizeof answer, MSG_DONTWAIT);
        if (length < 0 && errno == EINTR) continue;
        if (length < 0) return -errno;
        struct nlmsghdr head;
        struct nlmsgerr refusal;
        if ((size_t)length < sizeof head) continue;
        memcpy(&head, answer, sizeof head);
        if (head.nlmsg_seq != number || head.nlmsg_len > (size_t)length) continue;
        if (head.nlmsg_type == NLMSG_ERROR && head.nlmsg_len >= sizeof head + sizeof refusal) {
            memcpy(&refusal, answer + sizeof head, sizeof refusal);
            return refusal.error != 0 ? refusal.error : -EPROTO;
        }
        if (head.nlmsg_len < MESSAGE_HEAD) return -EPROTO;
        struct span entry = {answer + MESSAGE_HEAD, head.nlmsg_len - MESSAGE_HEAD};
        bool whole = parse_direction(find(entry, CTA_TUPLE_ORIG), original) &&
                     parse_direction(find(entry, CTA_TUPLE_REPLY), reply);
        return whole ? 0 : -EPROTO;
    }
    return -EAGAIN;
}

int tr_conntrack_get(struct tr_conntrack *conntrack, const struct tr_direction *original, struct tr_direction *reply)
{
    struct tr_direction asked = *original, found;
    if (!asked.ipv6) { /* what is behind an IPv4 address is nobody's */
        memset(asked.source + 4, 0, 12);
        memset(asked.destination + 4, 0, 12);
    }
    pthread_mutex_lock(&conntrack->lock);
    uint32_t number = ++conntrack->sequence;
    int error = ask(conntrack->fd, number, &asked);
    if (error == 0) error = read_answer(conntrack->fd, number, &found, reply);
    pthread_mutex_unlock(&conntrack->lock);
    if (error != 0) return error;
    /* The kernel finds a connection by either of its directions; only the original one is evidence. */
    return same(&found, &asked) ? 0 : -ENOENT;
}
