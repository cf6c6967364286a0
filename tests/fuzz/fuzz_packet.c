/* The packet view, on any octets: parse, look at it, rewrite it, sum it. */
#include <stdlib.h>
#include <string.h>

#include "packet.h"

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
        tr_packet_complete_sum(copy, (uint32_t)size);
        if (view.protocol == TR_TCP && view.captured == view.length &&
            (!tr_parse_untrusted(&again, copy, (uint32_t)size, &reason) || !tr_checksum_is_right(&again)))
            abort();
    }
    free(copy);
    return 0;
}
