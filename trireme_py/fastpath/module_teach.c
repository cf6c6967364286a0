/* Lessons: what Python teaches one pod's engine. Methods of the type in module_endpoint.c. */
#include "module.h"

#include <string.h>

#include "teach.h"

#define LOCKED(object, statement)                                \
    do {                                                         \
        struct tr_endpoint *endpoint = tr_module_endpoint(object); \
        Py_BEGIN_ALLOW_THREADS                                   \
        tr_endpoint_lock(endpoint);                              \
        statement;                                               \
        tr_endpoint_unlock(endpoint);                            \
        Py_END_ALLOW_THREADS                                     \
    } while (0)

PyObject *tr_module_teach_policy(PyObject *object, PyObject *unused)
{
    uint32_t number;

    (void)unused;
    LOCKED(object, number = tr_teach_policy(endpoint));
    return PyLong_FromUnsignedLong(number);
}

PyObject *tr_module_teach_identity(PyObject *object, PyObject *token)
{
    struct tr_token *or_none = NULL;

    if (token != Py_None && !(or_none = tr_module_token(token)))
        return NULL;
    LOCKED(object, tr_teach_identity(endpoint, or_none));
    Py_RETURN_NONE;
}

PyObject *tr_module_teach(PyObject *object, PyObject *args)
{
    PyObject *peer_object, *local_object;
    struct tr_token *peer, *local;
    struct tr_lesson lesson;
    const char *address, *key;
    Py_ssize_t address_size, key_size;
    int anybody;
    bool taught;

    if (!PyArg_ParseTuple(args, "OObbbHIIy#y#p", &peer_object, &local_object, &lesson.direction, &lesson.reason, &lesson.protocol, &lesson.port,
                          &lesson.policy, &lesson.decision, &address, &address_size, &key, &key_size, &anybody))
        return NULL;
    if (!(peer = tr_module_token(peer_object)) || !(local = tr_module_token(local_object)))
        return NULL;
    if (tr_module_read_address(lesson.address, address, address_size) < 0 || tr_module_wants(key_size, TR_KEY_SIZE, "pair key") < 0)
        return NULL;
    memcpy(lesson.key, key, TR_KEY_SIZE);
    lesson.anybody = anybody;
    LOCKED(object, taught = tr_teach(endpoint, peer, local, &lesson));
    explicit_bzero(&lesson, sizeof lesson);
    return PyBool_FromLong(taught);
}

int tr_module_read_end(PyObject *args, struct tr_end *end)
{
    const char *address;
    Py_ssize_t size;

    return PyArg_ParseTuple(args, "y#H", &address, &size, &end->port) ? tr_module_read_address(end->address, address, size) : -1;
}

PyObject *tr_module_teach_target(PyObject *object, PyObject *args)
{
    struct tr_end end;

    if (tr_module_read_end(args, &end) < 0)
        return NULL;
    LOCKED(object, tr_teach_target(endpoint, &end));
    Py_RETURN_NONE;
}

PyObject *tr_module_forget_target(PyObject *object, PyObject *args)
{
    struct tr_end end;

    if (tr_module_read_end(args, &end) < 0)
        return NULL;
    LOCKED(object, tr_forget_target(endpoint, &end));
    Py_RETURN_NONE;
}

/* (local, peer, ticket, key, server, server's port, client, not_before, not_after) */
static int read_exchange(PyObject *object, struct tr_exchange *exchange)
{
    PyObject *local, *peer;
    const char *ticket, *key, *server, *client;
    Py_ssize_t ticket_size, key_size, server_size, client_size;

    if (!PyArg_ParseTuple(object, "OOy#y#y#Hy#dd", &local, &peer, &ticket, &ticket_size, &key, &key_size, &server, &server_size, &exchange->server.port,
                          &client, &client_size, &exchange->not_before, &exchange->not_after))
        return -1;
    if (!(exchange->local = tr_module_token(local)) || !(exchange->peer = tr_module_token(peer)))
        return -1;
    if (tr_module_wants(ticket_size, TR_NONCE_SIZE, "ticket") < 0 || tr_module_wants(key_size, TR_KEY_SIZE, "pair key") < 0)
        return -1;
    memcpy(exchange->ticket, ticket, TR_NONCE_SIZE);
    memcpy(exchange->key, key, TR_KEY_SIZE);
    if (tr_module_read_address(exchange->server.address, server, server_size) < 0)
        return -1;
    return tr_module_read_address(exchange->client, client, client_size);
}

PyObject *tr_module_teach_warm(PyObject *object, PyObject *args)
{
    struct tr_exchange exchange;
    struct tr_end dialled;
    struct tr_session *session;
    PyObject *session_object, *described;
    const char *address;
    Py_ssize_t size;
    unsigned int policy;
    int waits;
    bool taught;

    if (!PyArg_ParseTuple(args, "y#HOOIp", &address, &size, &dialled.port, &session_object, &described, &policy, &waits))
        return NULL;
    if (tr_module_read_address(dialled.address, address, size) < 0 || !(session = tr_module_session(session_object)) ||
        read_exchange(described, &exchange) < 0)
        return NULL;
    LOCKED(object, taught = tr_teach_warm(endpoint, &dialled, session, &exchange, policy, waits));
    explicit_bzero(&exchange, sizeof exchange);
    return PyBool_FromLong(taught);
}

PyObject *tr_module_forget_warm(PyObject *object, PyObject *args)
{
    struct tr_end end;

    if (tr_module_read_end(args, &end) < 0)
        return NULL;
    LOCKED(object, tr_forget_warm(endpoint, &end));
    Py_RETURN_NONE;
}

PyObject *tr_module_teach_ticket(PyObject *object, PyObject *args)
{
    struct tr_exchange exchange;
    struct tr_session *session;
    PyObject *session_object, *described;

    if (!PyArg_ParseTuple(args, "OO", &session_object, &described))
        return NULL;
    if (!(session = tr_module_session(session_object)) || read_exchange(described, &exchange) < 0)
        return NULL;
    LOCKED(object, tr_teach_ticket(endpoint, session, &exchange));
    explicit_bzero(&exchange, sizeof exchange);
    Py_RETURN_NONE;
}

PyObject *tr_module_forget_ticket(PyObject *object, PyObject *args)
{
    const char *ticket;
    Py_ssize_t size;

    if (!PyArg_ParseTuple(args, "y#", &ticket, &size) || tr_module_wants(size, TR_NONCE_SIZE, "ticket") < 0)
        return NULL;
    LOCKED(object, tr_forget_ticket(endpoint, (const uint8_t *)ticket));
    Py_RETURN_NONE;
}

PyObject *tr_module_take_back(PyObject *object, PyObject *args)
{
    PyObject *local_object, *peer_object;
    struct tr_token *local = NULL, *peer;
    unsigned long long mono_ns;
    const char *octets;
    Py_ssize_t size;
    bool taken;

    if (!PyArg_ParseTuple(args, "y#OOK", &octets, &size, &local_object, &peer_object, &mono_ns))
        return NULL;
    if ((local_object != Py_None && !(local = tr_module_token(local_object))) || !(peer = tr_module_token(peer_object)))
        return NULL;
    LOCKED(object, taken = tr_take_back(endpoint, (const uint8_t *)octets, (uint32_t)size, local, peer, mono_ns));
    return PyBool_FromLong(taken);
}
