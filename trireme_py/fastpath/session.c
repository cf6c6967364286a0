/* What an exchange leaves behind, and its counters (the twin of replay.py). */
#include <stdlib.h>

#include "state.h"

struct tr_session *tr_session_new(uint32_t number)
{
    struct tr_session *session = calloc(1, sizeof *session);

    if (!session)
        return NULL;
    atomic_init(&session->references, 1);
    session->number = number;
    pthread_mutex_init(&session->lock, NULL);
    return session;
}

struct tr_session *tr_session_keep(struct tr_session *session)
{
    atomic_fetch_add_explicit(&session->references, 1, memory_order_relaxed);
    return session;
}

void tr_session_release(struct tr_session *session)
{
    if (atomic_fetch_sub_explicit(&session->references, 1, memory_order_acq_rel) != 1)
        return;
    if (session->described) {
        tr_token_release(session->exchange.local);
        tr_token_release(session->exchange.peer);
    }
    pthread_mutex_destroy(&session->lock);
    explicit_bzero(session, sizeof *session);
    free(session);
}

uint32_t tr_session_references(const struct tr_session *session)
{
    return atomic_load_explicit(&((struct tr_session *)(uintptr_t)session)->references, memory_order_relaxed);
}

void tr_session_describe(struct tr_session *session, const struct tr_exchange *exchange)
{
    if (session->described)
        return;
    session->exchange = *exchange;
    tr_token_keep(exchange->local);
    tr_token_keep(exchange->peer);
    session->described = true;
}

uint64_t tr_session_take(struct tr_session *session)
{
    uint64_t counter;

    pthread_mutex_lock(&session->lock);
    counter = ++session->highest;
    pthread_mutex_unlock(&session->lock);
    return counter;
}

static bool is_fresh(const struct tr_session *session, uint64_t counter)
{
    uint64_t behind = session->highest - counter;

    if (counter > session->highest)
        return true;
    return counter && behind < TR_WINDOW && !(session->seen[behind / 64] >> behind % 64 & 1);
}

bool tr_session_is_fresh(struct tr_session *session, uint64_t counter)
{
    bool fresh;

    pthread_mutex_lock(&session->lock);
    fresh = is_fresh(session, counter);
    pthread_mutex_unlock(&session->lock);
    return fresh;
}

/* Move what was seen away from the highest, by fewer than TR_WINDOW bits. */
static void shift(uint64_t seen[TR_WINDOW / 64], uint32_t bits)
{
    int words = (int)(bits / 64);
    uint32_t rest = bits % 64;

    for (int i = TR_WINDOW / 64 - 1; i >= 0; i--) {
        uint64_t high = i >= words ? seen[i - words] : 0, low = i > words ? seen[i - words - 1] : 0;

        seen[i] = rest ? high << rest | low >> (64 - rest) : high;
    }
}

bool tr_session_commit(struct tr_session *session, uint64_t counter)
{
    bool fresh;

    pthread_mutex_lock(&session->lock);
    fresh = is_fresh(session, counter);
    if (fresh && counter > session->highest) {
        uint64_t ahead = counter - session->highest;

        if (ahead < TR_WINDOW)
            shift(session->seen, (uint32_t)ahead);
        else
            memset(session->seen, 0, sizeof session->seen);
        session->highest = counter;
        session->seen[0] |= 1;
    } else if (fresh) {
        uint64_t behind = session->highest - counter;

        session->seen[behind / 64] |= UINT64_C(1) << behind % 64;
    }
    pthread_mutex_unlock(&session->lock);
    return fresh;
}

void tr_session_touch(struct tr_session *session, uint64_t mono_ns)
{
    pthread_mutex_lock(&session->lock);
    if (mono_ns > session->used_ns)
        session->used_ns = mono_ns;
    pthread_mutex_unlock(&session->lock);
}

uint64_t tr_session_used(struct tr_session *session)
{
    uint64_t used_ns;

    pthread_mutex_lock(&session->lock);
    used_ns = session->used_ns;
    pthread_mutex_unlock(&session->lock);
    return used_ns;
}
