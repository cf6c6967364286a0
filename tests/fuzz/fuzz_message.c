/* The messages, on any octets: what is read is within its bounds, and is what was written. */
#include <stdlib.h>
#include <string.h>

#include "message.h"

static void look_at_datagram_messages(struct tr_mac *mac, const uint8_t *data, uint32_t size)
{
    const struct tr_part payload = {"a question", 10};
    uint8_t key[TR_KEY_SIZE] = {1}, fixed[TR_RESUME_FIXED], confirm[TR_CONFIRM], proof[TR_PROOF];
    struct tr_end server, client;
    const struct tr_resume_ends ends = {&server, client.address};
    struct tr_message_view view;
    struct tr_resume_view resume;

    memset(&server, 3, sizeof server);
    memset(&client, 4, sizeof client);
    if (tr_read_resume_untrusted(&resume, data, size)) {
        if (resume.fixed != data || resume.hello.assertion + resume.hello.assertion_size != data + size)
            abort();
        if (!tr_write_resume(mac, fixed, resume.ticket, resume.counter, resume.hello.fixed, resume.hello.assertion_size, key, &ends, &payload))
            abort();
        fixed[6] = resume.fixed[6];
        if (memcmp(fixed, resume.fixed, TR_RESUME_MAC) != 0)
            abort();
        if (!tr_write_confirm(mac, confirm, fixed, resume.hello.fixed, &server, &client, key) ||
            !tr_confirm_is_proven(mac, confirm, fixed, resume.hello.fixed, key) ||
            !tr_write_datagram_proof(mac, proof, key, resume.hello.fixed, confirm) ||
            !tr_datagram_proof_is_right(mac, proof, key, resume.hello.fixed, confirm))
            abort();
    }
    if (tr_read_message_untrusted(&view, TR_MESSAGE_CONFIRM, data, size) && (size != TR_CONFIRM || view.assertion_size))
        abort();
    if (tr_read_message_untrusted(&view, TR_MESSAGE_PROOF, data, size) && (size != TR_PROOF || view.assertion_size))
        abort();
}

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
    look_at_datagram_messages(mac, copy, (uint32_t)size);
    free(copy);
    return 0;
}
