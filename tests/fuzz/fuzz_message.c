/* The messages, on any octets: what is read is within its bounds, and is what was written. */
#include <stdlib.h>
#include <string.h>

#include "message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tr_mac *mac;
    struct tr_message_view view;
    struct tr_end server, client;
    uint8_t *copy;

    if (!mac && !(mac = tr_mac_new()))
        abort();
    if (size > 4096 || !(copy = malloc(size + !size)))
        return 0;
    memcpy(copy, data, size);
    for (enum tr_message type = TR_MESSAGE_SYN; type <= TR_MESSAGE_ACK; type++) {
        if (!tr_read_message_untrusted(&view, type, copy, (uint32_t)size))
            continue;
        if (view.assertion < copy || view.assertion + view.assertion_size != copy + size || view.assertion_size > TR_MAX_ASSERTION)
            abort();
        if (type == TR_MESSAGE_SYN) {
            uint8_t fixed[TR_SYN_FIXED];

            tr_write_syn(fixed, view.id, view.fixed + 28, view.assertion_size);
            fixed[6] = view.fixed[6]; /* the highest version its sender speaks is his own */
            if (memcmp(fixed, view.fixed, sizeof fixed) != 0)
                abort();
        } else if (type == TR_MESSAGE_SYN_ACK) {
            uint8_t fixed[TR_SYN_ACK_FIXED], key[TR_KEY_SIZE] = {1}, syn[TR_SYN_FIXED] = {2};

            tr_read_ends_untrusted(view.fixed, &server, &client);
            if (!tr_write_syn_ack(mac, fixed, syn, view.id, view.fixed + 28, &server, &client, view.assertion_size, key))
                abort();
            if (!tr_syn_ack_is_proven(mac, key, syn, fixed))
                abort();
            fixed[6] = view.fixed[6];
            if (memcmp(fixed, view.fixed, TR_SYN_ACK_MAC) != 0)
                abort();
        }
    }
    free(copy);
    return 0;
}
