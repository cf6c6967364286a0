/* The packet view, on any octets: parse, look at it, rewrite it, sum it; and the surplus of UDP. */
#include <stdlib.h>
#include <string.h>

#include "octets.h"
#include "packet.h"
#include "surplus.h"

/* What is read of a datagram lies within it; a message that is put on is found again, and taken off. */
static void look_at_datagram(const struct tr_view *view, uint8_t *out, uint32_t room)
{
    static const uint8_t message[16] = {0xf7, 'T', 'R', 'M', 1, 8, 1};
    const struct tr_part part = {message, sizeof message};
    struct tr_datagram datagram, again;
    struct tr_view with;
    enum tr_reason reason;
    uint32_t length;

    if (!tr_read_datagram_untrusted(&datagram, view, &reason) || view->captured < view->length)
        return;
    if (datagram.payload.size + TR_UDP_HEADER + datagram.surplus != view->length - view->transport)
        abort();
    if (datagram.message && datagram.message + datagram.message_size > view->data + view->length)
        abort();
    for (int sealed = 0; sealed < 2; sealed++) {
        length = tr_with_message(view, &datagram.payload, &part, 1, sealed, out, room);
        if (!length)
            continue;
        if (length > TR_PATH_MTU || !tr_parse_untrusted(&with, out, length, &reason) || with.length != length ||
            !tr_read_datagram_untrusted(&again, &with, &reason))
            abort();
        if (!again.message || again.sealed != sealed || again.message_size != sizeof message ||
            memcmp(again.message, message, sizeof message) != 0 || again.payload.size != datagram.payload.size)
            abort();
    }
    length = tr_without_message(view, &datagram.payload, out, room);
    if (!length || !tr_parse_untrusted(&with, out, length, &reason) || !tr_read_datagram_untrusted(&again, &with, &reason) || again.surplus ||
        !tr_checksum_is_right(&with))
        abort();
    if (tr_without_message(view, &datagram.payload, out, length - 1))
        abort(); /* there was no room */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t out[1 << 17];
    struct tr_view view, again, quoted;
    enum tr_reason reason;
    uint8_t *copy;
    uint32_t length;

    if (size > UINT16_MAX)
        return 0;
    copy = malloc(size + !size); /* of exactly this size, so that a step beyond it is seen */
    if (!copy)
        return 0;
    memcpy(copy, data, size);
    if (tr_parse_untrusted(&view, copy, (uint32_t)size, &reason)) {
        if (view.captured > size || view.captured > view.length || view.transport > view.captured)
            abort();
        tr_parse_quoted_untrusted(&quoted, &view);
        if (view.protocol == TR_TCP) {
            const struct tr_part parts[] = {{"sixteen  octets.", 16}, {tr_payload(&view), tr_payload_size(&view)}};

            tr_checksum_is_right(&view);
            tr_has_fast_open(&view);
            length = tr_rewrite(&view, view.sequence - 28, parts, 2, out, sizeof out);
            if (length) {
                if (!tr_parse_untrusted(&again, out, length, &reason) || again.length != length || !tr_checksum_is_right(&again))
                    abort();
                if (again.body != view.body || again.sequence != view.sequence - 28 || tr_payload_size(&again) != 16 + parts[1].size)
                    abort();
            }
            if (tr_rewrite(&view, 0, NULL, 0, out, view.body - 1))
                abort(); /* there was no room */
        }
        if (view.protocol == TR_UDP)
            look_at_datagram(&view, out, sizeof out);
        tr_packet_complete_sum(copy, (uint32_t)size);
        if (view.protocol == TR_TCP && view.captured == view.length &&
            (!tr_parse_untrusted(&again, copy, (uint32_t)size, &reason) || !tr_checksum_is_right(&again)))
            abort();
    }
    free(copy);
    return 0;
}
