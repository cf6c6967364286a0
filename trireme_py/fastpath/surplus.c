#include "surplus.h"

#include "octets.h"

enum { OPTION = 6, KIND = 127, LONG = 255, EXPERIMENT = 0xf754, LEAST_MESSAGE = 12, SEAL = 0x5a5a }; /* wire.py, surplus.py */

static const uint8_t magic[4] = {0xf7, 'T', 'R', 'M'};

static bool sum_is_right(const struct tr_view *view, uint32_t octets)
{
    const uint8_t *udp = view->data + view->transport;

    if (!tr_get16(udp + 6) && view->version == 4 && octets != view->length - view->transport)
        return true; /* IPv4 without a checksum (RFC 768) */
    return tr_sum_fold(tr_sum(tr_sum_pseudo_header(view, octets), udp, octets)) == 0xffff;
}

/* What our option holds, if it is the first one and fills the rest; padding behind it is zeros. */
static void find_message(struct tr_datagram *datagram, const uint8_t *surplus, uint32_t length)
{
    uint32_t offset = (length & 1) + 2, size;
    const uint8_t *option = surplus + offset;

    if (datagram->surplus < offset + OPTION + LEAST_MESSAGE)
        return;
    if (option[0] != KIND || option[1] != LONG || tr_get16(option + 4) != EXPERIMENT)
        return;
    size = tr_get16(option + 2);
    if (size > datagram->surplus - offset || size < OPTION + sizeof magic || memcmp(option + OPTION, magic, sizeof magic) != 0)
        return;
    datagram->message = option + OPTION;
    datagram->message_size = size - OPTION;
}

bool tr_read_datagram_untrusted(struct tr_datagram *datagram, const struct tr_view *view, enum tr_reason *reason)
{
    const uint8_t *udp = view->data + view->transport;
    uint32_t octets, length;

    *datagram = (struct tr_datagram){.payload = {udp + TR_UDP_HEADER, 0}};
    if (view->captured < view->length)
        return true;
    octets = view->length - view->transport;
    length = tr_get16(udp + 4);
    if (length < TR_UDP_HEADER || length > octets) {
        *reason = TR_MALFORMED_PACKET;
        return false;
    }
    datagram->payload.size = length - TR_UDP_HEADER;
    datagram->surplus = octets - length;
    find_message(datagram, udp + length, length);
    if (!datagram->message)
        return true;
    if (!sum_is_right(view, octets)) {
        *reason = TR_BAD_CHECKSUM;
        return false;
    }
    datagram->sealed = !sum_is_right(view, length);
    return true;
}

/* Write the headers and the payload, with a UDP length and checksum as they should be; returns that checksum. There is room. */
static uint16_t write_plain(const struct tr_view *view, const struct tr_part *payload, uint8_t *out)
{
    uint32_t length = TR_UDP_HEADER + (uint32_t)payload->size;
    uint8_t *udp = out + view->transport;
    uint16_t checksum;

    memcpy(out, view->data, view->transport + TR_UDP_HEADER);
    memcpy(udp + TR_UDP_HEADER, payload->data, payload->size);
    tr_put16(udp + 4, (uint16_t)length);
    tr_put16(udp + 6, 0);
    checksum = (uint16_t)~tr_sum_fold(tr_sum(tr_sum_pseudo_header(view, length), udp, length));
    if (!checksum)
        checksum = 0xffff; /* zero would say "no checksum" (RFC 768) */
    tr_put16(udp + 6, checksum);
    return checksum;
}

uint32_t tr_with_message(const struct tr_view *view, const struct tr_part *payload, const struct tr_part *message, uint32_t parts, bool sealed,
                         uint8_t *out, uint32_t room)
{
    uint32_t length = TR_UDP_HEADER + (uint32_t)payload->size, pad = length & 1, message_size = 0, surplus, size;
    uint8_t *udp = out + view->transport, *ocs = udp + length + pad, *at = ocs + 2;
    int32_t missing, slack = 0;
    uint16_t checksum;

    for (uint32_t i = 0; i < parts; i++)
        message_size += (uint32_t)message[i].size;
    surplus = pad + 2 + OPTION + message_size;
    size = view->transport + length + surplus;
    if (size > room || size > TR_PATH_MTU)
        return 0;
    checksum = write_plain(view, payload, out);
    udp[length] = 0; /* the pad, or overwritten at once */
    tr_put16(ocs, 0);
    at[0] = KIND;
    at[1] = LONG;
    tr_put16(at + 2, (uint16_t)(OPTION + message_size));
    tr_put16(at + 4, EXPERIMENT);
    at += OPTION;
    for (uint32_t i = 0; i < parts; i++) {
        memcpy(at, message[i].data, message[i].size);
        at += message[i].size;
    }
    if (sealed) {
        uint32_t wrong = ((uint32_t)checksum + SEAL) % 0xffff;

        if (!wrong)
            wrong = SEAL;
        tr_put16(udp + 6, (uint16_t)wrong);
        slack = (int32_t)wrong - checksum;
    }
    /* Both sums agree if the surplus, its length and the seal add up to nothing (RFC 9868, section 9). */
    missing = -((int32_t)tr_sum_fold(tr_sum(0, ocs, surplus - pad)) + (int32_t)surplus + slack) % 0xffff;
    if (missing <= 0)
        missing += 0xffff;
    tr_put16(ocs, (uint16_t)missing);
    tr_renew_lengths(view, out, size);
    return size;
}

uint32_t tr_without_message(const struct tr_view *view, const struct tr_part *payload, uint8_t *out, uint32_t room)
{
    uint32_t size = view->transport + TR_UDP_HEADER + (uint32_t)payload->size;

    if (size > room)
        return 0;
    write_plain(view, payload, out);
    tr_renew_lengths(view, out, size);
    return size;
}
