/* The state of a flow as octets, for Python to go on with (handover.py reads them), and the way back. All numbers are in network order.
 *
 *   kind 1, octets of the record 2, tuple 37 (protocol 1, own 16, other 16, ports 2 each), then by kind */
#include "octets.h"
#include "state.h"

enum { KIND_CLIENT = 1, KIND_SERVER = 2, KIND_LIVE = 3, KIND_DATAGRAM_CLIENT = 4, KIND_DATAGRAM_SERVER = 5 };

struct writer {
    uint8_t *start, *at;
};

static void put8(struct writer *w, uint8_t value)
{
    *w->at++ = value;
}

static void put16(struct writer *w, uint16_t value)
{
    tr_put16(w->at, value);
    w->at += 2;
}

static void put32(struct writer *w, uint32_t value)
{
    tr_put32(w->at, value);
    w->at += 4;
}

static void put64(struct writer *w, uint64_t value)
{
    tr_put64(w->at, value);
    w->at += 8;
}

static void put(struct writer *w, const void *octets, size_t size)
{
    memcpy(w->at, octets, size);
    w->at += size;
}

static void put_headers(struct writer *w, const struct tr_headers *headers)
{
    put8(w, headers->length);
    put(w, headers->data, headers->length);
}

static struct writer begin(uint8_t *out, uint8_t kind, const struct tr_tuple *tuple)
{
    struct writer w = {out, out};

    put8(&w, kind);
    put16(&w, 0);
    put8(&w, (uint8_t)tuple->protocol);
    put(&w, tuple->own, 16);
    put(&w, tuple->other, 16);
    put16(&w, tuple->own_port);
    put16(&w, tuple->other_port);
    return w;
}

static uint32_t finish(struct writer *w)
{
    uint32_t size = (uint32_t)(w->at - w->start);

    tr_put16(w->start + 1, (uint16_t)size);
    return size;
}

static uint32_t write_client(const struct tr_client *flow, uint8_t *out)
{
    struct writer w = begin(out, KIND_CLIENT, &flow->tuple);

    put8(&w, (uint8_t)flow->state);
    put32(&w, flow->isn);
    put32(&w, flow->server_isn);
    put32(&w, flow->policy);
    put32(&w, flow->local->number);
    put32(&w, flow->peer ? flow->peer->number : 0);
    put64(&w, flow->proven_ns);
    put(&w, flow->syn_fixed + 28, TR_NONCE_SIZE);
    put(&w, flow->syn_ack_fixed, TR_SYN_ACK_FIXED);
    put(&w, flow->proof, TR_PROOF);
    put_headers(&w, &flow->syn);
    put_headers(&w, &flow->ack);
    return finish(&w);
}

static uint32_t write_server(const struct tr_server *flow, uint8_t *out)
{
    struct writer w = begin(out, KIND_SERVER, &flow->tuple);

    put8(&w, (uint8_t)flow->state);
    put32(&w, flow->isn);
    put32(&w, flow->server_isn);
    put32(&w, flow->local->number);
    put32(&w, flow->peer->number);
    put(&w, flow->syn_fixed, TR_SYN_FIXED);
    put(&w, flow->syn_ack_fixed + 28, TR_NONCE_SIZE);
    put_headers(&w, &flow->syn_ack);
    return finish(&w);
}

static uint32_t write_live(const struct tr_live *live, uint8_t *out)
{
    struct writer w = begin(out, KIND_LIVE, &live->tuple);

    put8(&w, live->direction);
    put32(&w, live->isn);
    put32(&w, live->server_isn);
    put32(&w, live->policy);
    put32(&w, live->peer->number);
    put(&w, live->address, 16);
    put16(&w, live->port);
    return finish(&w);
}

static uint32_t write_datagram_client(const struct tr_datagram_client *flow, uint8_t *out)
{
    struct writer w = begin(out, KIND_DATAGRAM_CLIENT, &flow->tuple);

    put8(&w, (uint8_t)flow->stage);
    put8(&w, flow->waits);
    put8(&w, flow->confirmed);
    put32(&w, flow->session->number);
    put64(&w, flow->began_ns);
    put(&w, flow->hello_fixed + 28, TR_NONCE_SIZE);
    put(&w, flow->actual.address, 16);
    put16(&w, flow->actual.port);
    put(&w, flow->proof, TR_PROOF);
    put8(&w, flow->resumes);
    put(&w, flow->resume, (size_t)flow->resumes * TR_RESUME_FIXED);
    put_headers(&w, &flow->first);
    return finish(&w);
}

static uint32_t write_datagram_server(const struct tr_datagram_server *flow, uint8_t *out)
{
    struct writer w = begin(out, KIND_DATAGRAM_SERVER, &flow->tuple);

    put8(&w, (uint8_t)flow->stage);
    put8(&w, flow->waits);
    put32(&w, flow->session->number);
    put32(&w, flow->request);
    put(&w, flow->hello_fixed, TR_SYN_FIXED);
    put(&w, flow->confirm, TR_CONFIRM);
    return finish(&w);
}

static uint32_t hand_over_datagrams(struct tr_endpoint *endpoint, const struct tr_tuple *tuple, uint8_t *out, bool *known)
{
    uint64_t hash = tr_hash(endpoint, tuple, sizeof *tuple);
    struct tr_datagram_client *client = tr_table_find(&endpoint->datagram_clients, hash, tuple);
    struct tr_datagram_server *server = tr_table_find(&endpoint->datagram_servers, hash, tuple);
    struct tr_live *live = tr_table_find(&endpoint->live_datagrams, hash, tuple);
    uint32_t length = 0;

    *known = client || live;
    if (client) {
        length += write_datagram_client(client, out + length);
        tr_forget_datagram_client(endpoint, client);
    }
    if (server) {
        length += write_datagram_server(server, out + length);
        tr_forget_datagram_server(endpoint, server);
    }
    if (live) {
        length += write_live(live, out + length);
        tr_forget_live(endpoint, live);
    }
    return length;
}

uint32_t tr_hand_over_tuple(struct tr_endpoint *endpoint, const struct tr_tuple *tuple, uint8_t *out, bool *known)
{
    uint64_t hash = tr_hash(endpoint, tuple, sizeof *tuple);
    struct tr_client *client = tr_table_find(&endpoint->clients, hash, tuple);
    struct tr_server *server = tr_table_find(&endpoint->servers, hash, tuple);
    struct tr_live *live = tr_table_find(&endpoint->live, hash, tuple);
    uint32_t length = 0;

    if (tuple->protocol == TR_UDP)
        return hand_over_datagrams(endpoint, tuple, out, known);
    *known = client || live; /* a half-open connection to the pod may be anybody's */
    if (client) {
        length += write_client(client, out + length);
        tr_forget_client(endpoint, client);
    }
    if (server) {
        length += write_server(server, out + length);
        tr_forget_server(endpoint, server);
    }
    if (live) {
        length += write_live(live, out + length);
        tr_forget_live(endpoint, live);
    }
    return length;
}

/* What is exported, table by table. */
static uint32_t export_entry(struct tr_endpoint *endpoint, uint32_t table, void *entry, bool forget, uint8_t *out)
{
    uint32_t size;

    switch (table) {
    case 0:
        size = write_client(entry, out);
        if (forget)
            tr_forget_client(endpoint, entry);
        return size;
    case 1:
        size = write_server(entry, out);
        if (forget)
            tr_forget_server(endpoint, entry);
        return size;
    case 2:
        size = write_datagram_client(entry, out);
        if (forget)
            tr_forget_datagram_client(endpoint, entry);
        return size;
    case 3:
        size = write_datagram_server(entry, out);
        if (forget)
            tr_forget_datagram_server(endpoint, entry);
        return size;
    default:
        size = write_live(entry, out);
        if (forget)
            tr_forget_live(endpoint, entry);
        return size;
    }
}

uint32_t tr_export(struct tr_endpoint *endpoint, struct tr_cursor *cursor, bool forget, uint8_t out[TR_HANDOVER])
{
    const struct tr_table *tables[] = {&endpoint->clients,          &endpoint->servers, &endpoint->datagram_clients,
                                       &endpoint->datagram_servers, &endpoint->live,    &endpoint->live_datagrams};

    for (; cursor->table < sizeof tables / sizeof *tables; cursor->table++, cursor->entry = NULL) {
        const struct tr_table *table = tables[cursor->table];
        void *entry = cursor->entry ? tr_table_newer(table, cursor->entry) : tr_table_oldest(table);

        if (!entry)
            continue;
        cursor->entry = forget ? NULL : entry;
        return export_entry(endpoint, cursor->table, entry, forget, out);
    }
    return 0;
}

/* -- and back -- */

struct reader {
    const uint8_t *at;
    uint32_t left;
    bool failed; /* there were too few */
};

static void get(struct reader *r, void *octets, uint32_t size)
{
    r->failed |= size > r->left;
    if (r->failed)
        return;
    memcpy(octets, r->at, size);
    r->at += size;
    r->left -= size;
}

static uint8_t get8(struct reader *r)
{
    uint8_t octet = 0;

    get(r, &octet, 1);
    return octet;
}

static uint16_t get16(struct reader *r)
{
    uint8_t octets[2] = {0};

    get(r, octets, sizeof octets);
    return tr_get16(octets);
}

static uint32_t get32(struct reader *r)
{
    uint8_t octets[4] = {0};

    get(r, octets, sizeof octets);
    return tr_get32(octets);
}

static uint64_t get64(struct reader *r)
{
    uint8_t octets[8] = {0};

    get(r, octets, sizeof octets);
    return tr_get64(octets);
}

static void get_headers(struct reader *r, struct tr_headers *headers)
{
    headers->length = get8(r);
    r->failed |= headers->length > sizeof headers->data;
    get(r, headers->data, headers->length);
}

/* Its kind. */
static uint8_t get_head(struct reader *r, struct tr_tuple *tuple)
{
    uint8_t kind = get8(r);

    get16(r);
    *tuple = (struct tr_tuple){.protocol = get8(r)};
    get(r, tuple->own, 16);
    get(r, tuple->other, 16);
    tuple->own_port = get16(r);
    tuple->other_port = get16(r);
    return kind;
}

/* Only what has been proven comes back: what the verdict was is not asked again. */
static void read_client(struct reader *r, struct tr_client *flow)
{
    uint8_t nonce[TR_NONCE_SIZE] = {0};
    struct tr_end client;

    flow->state = get8(r);
    flow->isn = get32(r);
    flow->server_isn = get32(r);
    flow->policy = get32(r);
    r->failed |= flow->state != TR_ACK_CREATED || get32(r) != flow->local->number || get32(r) != flow->peer->number;
    flow->proven_ns = get64(r);
    get(r, nonce, sizeof nonce);
    get(r, flow->syn_ack_fixed, sizeof flow->syn_ack_fixed);
    get(r, flow->proof, sizeof flow->proof);
    get_headers(r, &flow->syn);
    get_headers(r, &flow->ack);
    tr_write_syn(flow->syn_fixed, flow->local->id, nonce, flow->local->size);
    tr_read_ends_untrusted(flow->syn_ack_fixed, &flow->actual, &client);
}

static void read_live(struct reader *r, struct tr_live *live)
{
    live->direction = get8(r);
    live->isn = get32(r);
    live->server_isn = get32(r);
    live->policy = get32(r);
    r->failed |= live->direction > TR_EGRESS || get32(r) != live->peer->number;
    get(r, live->address, 16);
    live->port = get16(r);
}

static void remember_client(struct tr_endpoint *endpoint, uint64_t hash, const struct tr_client *like, uint64_t mono_ns)
{
    struct tr_client *flow;
    struct tr_link link;

    if (tr_table_full(&endpoint->clients))
        tr_forget_client(endpoint, tr_table_oldest(&endpoint->clients));
    flow = tr_table_add(&endpoint->clients, hash, &like->tuple, mono_ns);
    link = flow->link;
    *flow = *like;
    flow->link = link;
    tr_token_keep(flow->local);
    tr_token_keep(flow->peer);
}

bool tr_take_back(struct tr_endpoint *endpoint, const uint8_t *octets, uint32_t size, struct tr_token *local_or_none,
                  struct tr_token *peer, uint64_t mono_ns)
{
    const struct tr_instant now = {.mono_ns = mono_ns};
    struct tr_turn turn = {.endpoint = endpoint, .now = &now};
    struct reader r = {.at = octets, .left = size};
    struct tr_client flow = {.local = local_or_none, .peer = peer};
    struct tr_live live = {.peer = peer};
    const struct tr_owned *owned;
    uint64_t hash;

    if (local_or_none) {
        r.failed |= get_head(&r, &flow.tuple) != KIND_CLIENT;
        read_client(&r, &flow);
    }
    r.failed |= get_head(&r, &live.tuple) != KIND_LIVE || live.tuple.protocol != TR_TCP;
    read_live(&r, &live);
    if (r.failed || r.left || (local_or_none && memcmp(&flow.tuple, &live.tuple, sizeof flow.tuple) != 0))
        return false;
    hash = tr_hash(endpoint, &live.tuple, sizeof live.tuple);
    owned = tr_find_owned(endpoint, &live.tuple, hash);
    if (owned && owned->pending)
        return false; /* Python would not know them any more */
    if (tr_table_find(&endpoint->clients, hash, &live.tuple) || tr_table_find(&endpoint->servers, hash, &live.tuple) ||
        tr_table_find(&endpoint->live, hash, &live.tuple))
        return false; /* a younger one, behind a REDIRECT */
    if (local_or_none)
        remember_client(endpoint, hash, &flow, mono_ns);
    tr_remember_live(&turn, &live.tuple, &live);
    return true;
}
