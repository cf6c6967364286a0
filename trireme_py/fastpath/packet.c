#include "packet.h"

#include "octets.h"

enum { IPV4_HEADER = 20, IPV6_HEADER = 40, TCP_HEADER = 20 };

static bool refuse(enum tr_reason *reason, enum tr_reason why)
{
    *reason = why;
    return false;
}

static bool parse_ipv4_untrusted(struct tr_view *view, enum tr_reason *reason)
{
    const uint8_t *data = view->data;
    uint32_t header;

    if (view->captured < IPV4_HEADER)
        return refuse(reason, TR_MALFORMED_PACKET);
    header = (data[0] & 0x0fu) * 4;
    view->length = tr_get16(data + 2);
    if (header < IPV4_HEADER || view->captured < header || view->length < header)
        return refuse(reason, TR_MALFORMED_PACKET);
    if (tr_get16(data + 6) & 0x3fff)
        return refuse(reason, TR_FRAGMENT);
    view->protocol = data[9];
    view->transport = header;
    tr_map_v4(view->source, data + 12);
    tr_map_v4(view->destination, data + 16);
    return true;
}

static bool parse_ipv6_untrusted(struct tr_view *view, enum tr_reason *reason)
{
    const uint8_t *data = view->data;
    uint32_t offset = IPV6_HEADER, end;
    uint8_t following;

    if (view->captured < IPV6_HEADER)
        return refuse(reason, TR_MALFORMED_PACKET);
    view->length = IPV6_HEADER + tr_get16(data + 4);
    end = view->captured < view->length ? view->captured : view->length;
    following = data[6];
    for (int i = 0; i <= TR_MAX_IPV6_EXTENSION_HEADERS; i++) {
        uint32_t unit;

        switch (following) {
        case 0: /* hop-by-hop options */
        case 43: /* routing */
        case 60: /* destination options */
            unit = 8;
            break;
        case 51: /* authentication */
            unit = 4;
            break;
        case 44: /* fragment */
            unit = 0;
            if (end - offset >= 8 && tr_get16(data + offset + 2) & 0xfff9)
                return refuse(reason, TR_FRAGMENT);
            break;
        default:
            view->protocol = following;
            view->transport = offset;
            memcpy(view->source, data + 8, 16);
            memcpy(view->destination, data + 24, 16);
            return true;
        }
        if (end - offset < 8)
            return refuse(reason, TR_MALFORMED_PACKET);
        following = data[offset];
        offset += 8 + unit * data[offset + 1];
        if (offset > end)
            return refuse(reason, TR_MALFORMED_PACKET);
    }
    return refuse(reason, TR_MALFORMED_PACKET);
}

static bool parse_ip_untrusted(struct tr_view *view, const uint8_t *data, uint32_t captured, enum tr_reason *reason)
{
    *view = (struct tr_view){.data = data, .captured = captured};
    if (!captured)
        return refuse(reason, TR_MALFORMED_PACKET);
    view->version = data[0] >> 4;
    if (view->version == 4)
        return parse_ipv4_untrusted(view, reason);
    if (view->version == 6)
        return parse_ipv6_untrusted(view, reason);
    return refuse(reason, TR_MALFORMED_PACKET);
}

bool tr_parse_untrusted(struct tr_view *view, const uint8_t *data, uint32_t captured, enum tr_reason *reason)
{
    uint32_t size, header;
    const uint8_t *at;

    if (!parse_ip_untrusted(view, data, captured, reason))
        return false;
    if (view->captured > view->length)
        view->captured = view->length;
    size = view->captured - view->transport;
    at = data + view->transport;
    if (view->protocol == TR_UDP || view->protocol == TR_SCTP) {
        if (size < 8)
            return refuse(reason, TR_MALFORMED_PACKET);
        view->source_port = tr_get16(at);
        view->destination_port = tr_get16(at + 2);
        return true;
    }
    if (view->protocol != TR_TCP)
        return true;
    if (size < TCP_HEADER)
        return refuse(reason, TR_MALFORMED_PACKET);
    header = (at[12] >> 4) * 4u;
    if (header < TCP_HEADER || size < header)
        return refuse(reason, TR_MALFORMED_PACKET);
    view->source_port = tr_get16(at);
    view->destination_port = tr_get16(at + 2);
    view->sequence = tr_get32(at + 4);
    view->acknowledgement = tr_get32(at + 8);
    view->flags = at[13];
    view->body = view->transport + header;
    return true;
}

bool tr_parse_quoted_untrusted(struct tr_view *quoted, const struct tr_view *icmp)
{
    const uint8_t *at = icmp->data + icmp->transport;
    uint32_t size = icmp->captured - icmp->transport;
    enum tr_reason reason;
    bool error;

    if (size < 8)
        return false;
    if (icmp->protocol == TR_ICMP)
        error = at[0] == 3 || at[0] == 4 || at[0] == 5 || at[0] == 11 || at[0] == 12;
    else
        error = icmp->protocol == TR_ICMPV6 && at[0] >= 1 && at[0] <= 4;
    if (!error || !parse_ip_untrusted(quoted, at + 8, size - 8, &reason))
        return false;
    if (quoted->captured < quoted->transport + 4)
        return false;
    quoted->source_port = tr_get16(quoted->data + quoted->transport);
    quoted->destination_port = tr_get16(quoted->data + quoted->transport + 2);
    return true;
}

/* RFC 1071. Words of 32 bits are summed in 64: no packet is long enough to overflow that. */
uint64_t tr_sum(uint64_t so_far, const uint8_t *at, uint32_t size)
{
    for (; size >= 4; size -= 4, at += 4)
        so_far += tr_get32(at);
    if (size >= 2) {
        so_far += tr_get16(at);
        at += 2;
        size -= 2;
    }
    if (size)
        so_far += (uint32_t)at[0] << 8;
    return so_far;
}

uint16_t tr_sum_fold(uint64_t total)
{
    total = (total >> 32) + (total & 0xffffffff);
    total = (total >> 32) + (total & 0xffffffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    return (uint16_t)((total >> 16) + (total & 0xffff));
}

/* RFC 9293, section 3.1, and RFC 8200, section 8.1; the sum of IPv4's mapped prefixes is taken off by not adding it. */
uint64_t tr_sum_pseudo_header(const struct tr_view *view, uint32_t size)
{
    uint32_t skipped = view->version == 4 ? 12 : 0;
    uint64_t total = size + view->protocol;

    total = tr_sum(total, view->source + skipped, 16 - skipped);
    return tr_sum(total, view->destination + skipped, 16 - skipped);
}

bool tr_checksum_is_right(const struct tr_view *view)
{
    uint32_t size = view->length - view->transport;

    if (view->captured < view->length)
        return false;
    return tr_sum_fold(tr_sum(tr_sum_pseudo_header(view, size), view->data + view->transport, size)) == 0xffff;
}

bool tr_has_fast_open(const struct tr_view *view)
{
    uint32_t offset = view->transport + TCP_HEADER, end = view->body;

    while (offset < end) {
        const uint8_t *at = view->data + offset;

        if (at[0] == 0) /* end of options */
            return false;
        if (at[0] == 1) { /* no operation */
            offset++;
            continue;
        }
        if (end - offset < 2 || at[1] < 2 || at[1] > end - offset)
            return false; /* the receiving stack stops reading options here, too */
        if (at[0] == 34)
            return true;
        if (at[0] == 254 && at[1] >= 4 && at[2] == 0xf9 && at[3] == 0x89) /* before it had a number: RFC 7413, section 4.1.1 */
            return true;
        offset += at[1];
    }
    return false;
}

void tr_renew_lengths(const struct tr_view *view, uint8_t *out, uint32_t size)
{
    if (view->version == 4) {
        tr_put16(out + 2, (uint16_t)size);
        tr_put16(out + 10, 0);
        tr_put16(out + 10, (uint16_t)~tr_sum_fold(tr_sum(0, out, view->transport)));
    } else {
        tr_put16(out + 4, (uint16_t)(size - IPV6_HEADER));
    }
}

uint32_t tr_rewrite(const struct tr_view *view, uint32_t sequence, const struct tr_part *payload, uint32_t parts, uint8_t *out,
                    uint32_t room)
{
    uint32_t size = view->body;
    uint8_t *tcp = out + view->transport;

    for (uint32_t i = 0; i < parts; i++) {
        if (payload[i].size > TR_PATH_MTU + UINT16_MAX)
            return 0;
        size += (uint32_t)payload[i].size;
    }
    if (size > room || size > UINT16_MAX)
        return 0;
    memcpy(out, view->data, view->body);
    size = view->body;
    for (uint32_t i = 0; i < parts; i++) {
        if (payload[i].size)
            memcpy(out + size, payload[i].data, payload[i].size);
        size += (uint32_t)payload[i].size;
    }
    tr_put32(tcp + 4, sequence);
    tr_put16(tcp + 16, 0);
    tr_put16(tcp + 16, (uint16_t)~tr_sum_fold(tr_sum(tr_sum_pseudo_header(view, size - view->transport), tcp, size - view->transport)));
    tr_renew_lengths(view, out, size);
    return size;
}

void tr_packet_complete_sum(uint8_t *data, uint32_t captured)
{
    struct tr_view view;
    enum tr_reason reason;
    uint32_t size, field;
    uint16_t complete;

    if (!tr_parse_untrusted(&view, data, captured, &reason) || view.captured < view.length)
        return;
    if (view.protocol != TR_TCP && view.protocol != TR_UDP)
        return;
    size = view.length - view.transport;
    field = view.transport + (view.protocol == TR_TCP ? 16 : 6);
    if (view.protocol == TR_UDP) {
        /* RFC 768: its own length says what is summed, the surplus (RFC 9868) is not. */
        uint32_t own = tr_get16(data + view.transport + 4);

        if (own < 8 || own > size)
            return;
        size = own;
    }
    tr_put16(data + field, 0);
    complete = (uint16_t)~tr_sum_fold(tr_sum(tr_sum_pseudo_header(&view, size), data + view.transport, size));
    if (!complete && view.protocol == TR_UDP)
        complete = 0xffff; /* zero would say that there is no sum */
    tr_put16(data + field, complete);
}
