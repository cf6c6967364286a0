/* The engine as Python sees it (`trireme_py._fastpath`); fast.py is its only user. Everything that takes an endpoint's lock does so without
 * the interpreter's, and makes Python objects when both are let go. */
#include "module.h"

#include <structmember.h>

#include "octets.h"
#include "packet.h"
#include "siphash.h"
#include "teach.h"

enum { OUT = 1 << 16 };

struct engine_object {
    PyObject_HEAD
    struct tr_engine *engine;
};

struct token_object {
    PyObject_HEAD
    struct tr_token *token;
    unsigned int number;
};

struct endpoint_object {
    PyObject_HEAD
    PyObject *engine;
    PyObject *translate;
    struct tr_endpoint *endpoint;
    uint8_t *out;
};

static PyTypeObject *engine_type, *token_type, *endpoint_type;

#define LOCKED(self, statement)                            \
    do {                                                   \
        struct tr_endpoint *endpoint = (self)->endpoint;   \
        Py_BEGIN_ALLOW_THREADS                             \
        tr_endpoint_lock(endpoint);                        \
        statement;                                         \
        tr_endpoint_unlock(endpoint);                      \
        Py_END_ALLOW_THREADS                               \
    } while (0)

struct tr_endpoint *tr_module_endpoint(PyObject *object)
{
    if (PyObject_TypeCheck(object, endpoint_type))
        return ((struct endpoint_object *)object)->endpoint;
    PyErr_SetString(PyExc_TypeError, "not a _fastpath.Endpoint");
    return NULL;
}

static void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    release(self);
    Py_DECREF(type);
}

static PyObject *allocate(PyTypeObject *type)
{
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

static int wants(Py_ssize_t size, Py_ssize_t wanted, const char *what)
{
    if (size == wanted)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s has %zd octets, not %zd", what, size, wanted);
    return -1;
}

/* An address of 4 or 16 octets, in the form of the tables. */
static int read_address(uint8_t address[16], const char *octets, Py_ssize_t size)
{
    if (size == 4)
        tr_map_v4(address, (const uint8_t *)octets);
    else if (size == 16)
        memcpy(address, octets, 16);
    else
        return wants(size, 16, "address");
    return 0;
}

static PyObject *address_object(const uint8_t address[16])
{
    bool v4 = tr_is_v4_mapped(address);

    return PyBytes_FromStringAndSize((const char *)address + (v4 ? 12 : 0), v4 ? 4 : 16);
}

/* -- Engine -- */

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct engine_object *self;
    const char *seed;
    Py_ssize_t size;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "y#", &seed, &size) || wants(size, 16, "seed") < 0)
        return NULL;
    self = (struct engine_object *)allocate(type);
    if (!self)
        return NULL;
    self->engine = tr_engine_new((const uint8_t *)seed);
    if (self->engine)
        return (PyObject *)self;
    Py_DECREF(self);
    return PyErr_NoMemory();
}

static void engine_dealloc(PyObject *self)
{
    tr_engine_free(((struct engine_object *)self)->engine);
    free_object(self);
}

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, (char *)"Engine(seed): what all endpoints share."},
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {0, NULL},
};
static PyType_Spec engine_spec = {"trireme_py._fastpath.Engine", sizeof(struct engine_object), 0, Py_TPFLAGS_DEFAULT, engine_slots};

/* -- Token -- */

static PyObject *token_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct token_object *self;
    unsigned int number;
    const char *id, *assertion;
    Py_ssize_t id_size, size;
    double not_after;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "Iy#y#d", &number, &id, &id_size, &assertion, &size, &not_after) || wants(id_size, TR_ID_SIZE, "id") < 0)
        return NULL;
    if (size > TR_MAX_ASSERTION)
        return PyErr_Format(PyExc_ValueError, "an assertion of %zd octets", size);
    self = (struct token_object *)allocate(type);
    if (!self)
        return NULL;
    self->number = number;
    self->token = tr_token_new(number, (const uint8_t *)id, (const uint8_t *)assertion, (uint32_t)size, not_after);
    if (self->token)
        return (PyObject *)self;
    Py_DECREF(self);
    return PyErr_NoMemory();
}

static void token_dealloc(PyObject *object)
{
    struct token_object *self = (struct token_object *)object;

    if (self->token)
        tr_token_release(self->token);
    free_object(object);
}

static PyObject *token_in_use(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tr_token_references(((struct token_object *)self)->token) > 1);
}

static PyMethodDef token_methods[] = {
    {"in_use", token_in_use, METH_NOARGS, "Tell whether the engine still refers to it."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef token_members[] = {
    {"number", T_UINT, offsetof(struct token_object, number), READONLY, "The caller's own number for it."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot token_slots[] = {
    {Py_tp_doc, (char *)"Token(number, id, assertion, not_after): an assertion, a local pod's or a verified peer's."},
    {Py_tp_new, token_new},
    {Py_tp_dealloc, token_dealloc},
    {Py_tp_methods, token_methods},
    {Py_tp_members, token_members},
    {0, NULL},
};
static PyType_Spec token_spec = {"trireme_py._fastpath.Token", sizeof(struct token_object), 0, Py_TPFLAGS_DEFAULT, token_slots};

static struct tr_token *token_of(PyObject *object)
{
    if (PyObject_TypeCheck(object, token_type))
        return ((struct token_object *)object)->token;
    PyErr_SetString(PyExc_TypeError, "not a _fastpath.Token");
    return NULL;
}

/* -- Endpoint: life -- */

static PyObject *endpoint_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct endpoint_object *self;
    struct tr_sizes sizes;
    PyObject *engine;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "OIIIII", &engine, &sizes.half_open, &sizes.live, &sizes.peers, &sizes.verdicts, &sizes.owned))
        return NULL;
    if (!PyObject_TypeCheck(engine, engine_type)) {
        PyErr_SetString(PyExc_TypeError, "not a _fastpath.Engine");
        return NULL;
    }
    self = (struct endpoint_object *)allocate(type);
    if (!self)
        return NULL;
    Py_INCREF(engine);
    self->engine = engine;
    self->endpoint = tr_endpoint_new(((struct engine_object *)engine)->engine, &sizes);
    self->out = PyMem_Malloc(OUT);
    if (self->endpoint && self->out)
        return (PyObject *)self;
    Py_DECREF(self);
    PyErr_SetString(PyExc_RuntimeError, "no memory for a pod's tables, or libcrypto offers no BLAKE2SMAC; see: openssl list -mac-algorithms");
    return NULL;
}

static void endpoint_dealloc(PyObject *object)
{
    struct endpoint_object *self = (struct endpoint_object *)object;

    if (self->endpoint)
        tr_endpoint_free(self->endpoint);
    PyMem_Free(self->out);
    Py_XDECREF(self->translate);
    Py_XDECREF(self->engine);
    free_object(object);
}

/* -- Endpoint: packets -- */

static PyObject *endpoint_receive(PyObject *object, PyObject *args)
{
    struct endpoint_object *self = (struct endpoint_object *)object;
    struct tr_packet packet = {.out = self->out, .room = OUT};
    struct tr_instant now;
    struct tr_result result;
    unsigned long long mono_ns;
    int hook, more;
    const char *data;
    Py_ssize_t size;

    if (!PyArg_ParseTuple(args, "Kdiy#p", &mono_ns, &now.wall_s, &hook, &data, &size, &more))
        return NULL;
    now.mono_ns = mono_ns;
    packet.data = (const uint8_t *)data;
    packet.captured = (uint32_t)size;
    packet.hook = hook ? TR_APPLICATION : TR_NETWORK;
    packet.more = more;
    LOCKED(self, tr_engine_receive(endpoint, &packet, &now, &result));
    if (result.verdict != TR_PARK && result.verdict != TR_DROP && result.length)
        return Py_BuildValue("iiy#", result.verdict, 0, self->out, (Py_ssize_t)result.length);
    return Py_BuildValue("iiO", result.verdict, result.verdict == TR_PARK ? (int)result.park : (int)result.reason, Py_None);
}

static int read_packet(PyObject *args, struct tr_packet *packet)
{
    const char *data;
    Py_ssize_t size;
    int hook;

    if (!PyArg_ParseTuple(args, "iy#", &hook, &data, &size))
        return -1;
    *packet = (struct tr_packet){.data = (const uint8_t *)data, .captured = (uint32_t)size, .hook = hook ? TR_APPLICATION : TR_NETWORK};
    return 0;
}

static PyObject *endpoint_hand_over(PyObject *object, PyObject *args)
{
    struct endpoint_object *self = (struct endpoint_object *)object;
    struct tr_packet packet;
    uint32_t size;

    if (read_packet(args, &packet) < 0)
        return NULL;
    LOCKED(self, size = tr_engine_hand_over(endpoint, &packet, self->out));
    return PyBytes_FromStringAndSize((const char *)self->out, (Py_ssize_t)size);
}

static PyObject *endpoint_returned(PyObject *object, PyObject *args)
{
    struct endpoint_object *self = (struct endpoint_object *)object;
    struct tr_packet packet;

    if (read_packet(args, &packet) < 0)
        return NULL;
    LOCKED(self, tr_engine_returned(endpoint, packet.data, packet.captured, packet.hook));
    Py_RETURN_NONE;
}

/* -- Endpoint: upkeep -- */

static PyObject *endpoint_add_entropy(PyObject *object, PyObject *args)
{
    const char *octets;
    Py_ssize_t size;

    if (!PyArg_ParseTuple(args, "y#", &octets, &size))
        return NULL;
    LOCKED((struct endpoint_object *)object,
           tr_engine_add_entropy(endpoint, (const uint8_t *)octets, (uint32_t)(size / TR_NONCE_SIZE)));
    Py_RETURN_NONE;
}

static PyObject *endpoint_next_deadline(PyObject *object, PyObject *unused)
{
    uint64_t deadline;

    (void)unused;
    LOCKED((struct endpoint_object *)object, deadline = tr_engine_next_deadline(endpoint));
    if (deadline == UINT64_MAX)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(deadline);
}

static PyObject *endpoint_expire(PyObject *object, PyObject *args)
{
    unsigned long long mono_ns;

    if (!PyArg_ParseTuple(args, "K", &mono_ns))
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_engine_expire(endpoint, mono_ns));
    Py_RETURN_NONE;
}

static PyObject *list_of(const uint64_t *numbers, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);

    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(numbers[i]);

        if (!number || PyList_SetItem(list, i, number) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *endpoint_counters(PyObject *object, PyObject *unused)
{
    struct tr_counters c;

    (void)unused;
    LOCKED((struct endpoint_object *)object, tr_engine_counters(endpoint, &c));
    return Py_BuildValue("NNNNNNIIIIII", list_of(c.drops, TR_REASONS), list_of(c.parked, TR_PARKS), list_of(c.accepted[0], TR_VERDICT_REASONS),
                         list_of(c.accepted[1], TR_VERDICT_REASONS), list_of(c.unrecorded[0], TR_VERDICT_REASONS), list_of(c.unrecorded[1], TR_VERDICT_REASONS), c.clients, c.servers, c.live, c.peers, c.verdicts,
                         c.owned);
}

/* -- Endpoint: lessons -- */

static PyObject *endpoint_teach_policy(PyObject *object, PyObject *unused)
{
    uint32_t number;

    (void)unused;
    LOCKED((struct endpoint_object *)object, number = tr_teach_policy(endpoint));
    return PyLong_FromUnsignedLong(number);
}

static PyObject *endpoint_teach_identity(PyObject *object, PyObject *token)
{
    struct tr_token *or_none = NULL;

    if (token != Py_None && !(or_none = token_of(token)))
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_teach_identity(endpoint, or_none));
    Py_RETURN_NONE;
}

static PyObject *endpoint_teach(PyObject *object, PyObject *args)
{
    PyObject *peer_object, *local_object;
    struct tr_token *peer, *local;
    struct tr_lesson lesson;
    const char *address, *key;
    Py_ssize_t address_size, key_size;
    bool taught;

    if (!PyArg_ParseTuple(args, "OObbHIIy#y#", &peer_object, &local_object, &lesson.direction, &lesson.reason, &lesson.port, &lesson.policy,
                          &lesson.decision, &address, &address_size, &key, &key_size))
        return NULL;
    if (!(peer = token_of(peer_object)) || !(local = token_of(local_object)))
        return NULL;
    if (read_address(lesson.address, address, address_size) < 0 || wants(key_size, TR_KEY_SIZE, "pair key") < 0)
        return NULL;
    memcpy(lesson.key, key, TR_KEY_SIZE);
    LOCKED((struct endpoint_object *)object, taught = tr_teach(endpoint, peer, local, &lesson));
    explicit_bzero(&lesson, sizeof lesson);
    return PyBool_FromLong(taught);
}

static int read_end(PyObject *args, struct tr_end *end)
{
    const char *address;
    Py_ssize_t size;

    return PyArg_ParseTuple(args, "y#H", &address, &size, &end->port) ? read_address(end->address, address, size) : -1;
}

static PyObject *endpoint_teach_target(PyObject *object, PyObject *args)
{
    struct tr_end end;

    if (read_end(args, &end) < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_teach_target(endpoint, &end));
    Py_RETURN_NONE;
}

static PyObject *endpoint_forget_target(PyObject *object, PyObject *args)
{
    struct tr_end end;

    if (read_end(args, &end) < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_forget_target(endpoint, &end));
    Py_RETURN_NONE;
}

/* own address, own port, other address, other port, and a SYN's number where that is meant */
static int read_tuple(PyObject *args, struct tr_tuple *tuple)
{
    const char *own, *other;
    Py_ssize_t own_size, other_size;
    unsigned int isn = 0;

    memset(tuple, 0, sizeof *tuple);
    if (!PyArg_ParseTuple(args, "y#Hy#H|I", &own, &own_size, &tuple->own_port, &other, &other_size, &tuple->other_port, &isn))
        return -1;
    tuple->isn_or_zero = isn;
    /* No own address: a SYN of that peer, to whichever port. */
    if (own_size && read_address(tuple->own, own, own_size) < 0)
        return -1;
    return read_address(tuple->other, other, other_size);
}

static PyObject *endpoint_own(PyObject *object, PyObject *args)
{
    struct tr_tuple tuple;

    if (read_tuple(args, &tuple) < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_own(endpoint, &tuple));
    Py_RETURN_NONE;
}

static PyObject *endpoint_disown(PyObject *object, PyObject *args)
{
    struct tr_tuple tuple;

    if (read_tuple(args, &tuple) < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_disown(endpoint, &tuple));
    Py_RETURN_NONE;
}

/* -- Endpoint: accepted connections, events -- */

static PyObject *tuple_object(const struct tr_tuple *tuple)
{
    return Py_BuildValue("iNiNi", TR_TCP, address_object(tuple->own), tuple->own_port, address_object(tuple->other), tuple->other_port);
}

static PyObject *endpoint_remembered(PyObject *object, PyObject *unused)
{
    struct tr_tuple *tuples;
    struct tr_counters counters;
    uint32_t count;
    PyObject *list;

    (void)unused;
    LOCKED((struct endpoint_object *)object, tr_engine_counters(endpoint, &counters));
    tuples = PyMem_Malloc((counters.live + 1) * sizeof *tuples);
    if (!tuples)
        return PyErr_NoMemory();
    LOCKED((struct endpoint_object *)object, count = tr_live_tuples(endpoint, tuples, counters.live));
    list = PyList_New(count);
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *tuple = tuple_object(&tuples[i]);

        if (!tuple || PyList_SetItem(list, i, tuple) < 0)
            Py_CLEAR(list);
    }
    PyMem_Free(tuples);
    return list;
}

static PyObject *endpoint_forget(PyObject *object, PyObject *args)
{
    struct tr_tuple tuple;
    bool was_there;

    if (read_tuple(args, &tuple) < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, was_there = tr_live_forget(endpoint, &tuple));
    return PyBool_FromLong(was_there);
}

static PyObject *endpoint_listen(PyObject *object, PyObject *flag)
{
    int listening = PyObject_IsTrue(flag);
    bool done;

    if (listening < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, done = tr_listen(endpoint, listening));
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *endpoint_take_event(PyObject *object, PyObject *unused)
{
    struct tr_event event;
    bool taken;

    (void)unused;
    LOCKED((struct endpoint_object *)object, taken = tr_take_event(endpoint, &event));
    if (!taken)
        Py_RETURN_NONE;
    /* The token's number is all that Python needs; as it looks that up before anything else can happen, the reference has done its duty. */
    tr_token_release(event.peer);
    return Py_BuildValue("NIdIiNi", tuple_object(&event.tuple), event.token, event.wall_s, event.decision, (int)event.direction,
                         address_object(event.address), (int)event.port);
}

static PyObject *endpoint_export(PyObject *object, PyObject *flag)
{
    struct endpoint_object *self = (struct endpoint_object *)object;
    int forget = PyObject_IsTrue(flag);
    PyObject *list = forget < 0 ? NULL : PyList_New(0);
    struct tr_cursor cursor = {0};
    uint32_t size;

    tr_endpoint_lock(self->endpoint);
    while (list && (size = tr_export(self->endpoint, &cursor, forget, self->out))) {
        PyObject *octets = PyBytes_FromStringAndSize((const char *)self->out, (Py_ssize_t)size);

        if (!octets || PyList_Append(list, octets) < 0)
            Py_CLEAR(list);
        Py_XDECREF(octets);
    }
    tr_endpoint_unlock(self->endpoint);
    return list;
}

/* -- Endpoint: translation -- */

static enum tr_shown ask_python(void *context, uint8_t version, const struct tr_end *source, const struct tr_end *dialled, struct tr_end *shown)
{
    PyGILState_STATE state = PyGILState_Ensure();
    enum tr_shown answer = TR_CANNOT_TELL;
    PyObject *said = PyObject_CallFunction(context, "NiNi", address_object(source->address), (int)source->port,
                                           address_object(dialled->address), (int)dialled->port);

    (void)version;
    if (said == Py_None)
        answer = TR_NO_CONNECTION;
    else if (said && PyTuple_Check(said) && read_end(said, shown) == 0)
        answer = TR_SHOWN;
    PyErr_Clear(); /* whatever it was, the packet is parked and Python asks for itself */
    Py_XDECREF(said);
    PyGILState_Release(state);
    return answer;
}

static PyObject *endpoint_set_translate(PyObject *object, PyObject *callable)
{
    struct endpoint_object *self = (struct endpoint_object *)object;
    PyObject *old = self->translate;
    bool none = callable == Py_None;

    Py_INCREF(callable);
    LOCKED(self, tr_engine_set_translate(endpoint, none ? NULL : ask_python, callable));
    self->translate = callable;
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

static PyMethodDef endpoint_methods[] = {
    {"receive", endpoint_receive, METH_VARARGS,
     "receive(mono_ns, wall_s, hook, data, more): (verdict, reason of a drop or class of a park, packet or None)."},
    {"hand_over", endpoint_hand_over, METH_VARARGS, "hand_over(hook, data): what was known of a parked packet's connection, as octets."},
    {"returned", endpoint_returned, METH_VARARGS, "returned(hook, data): Python has dealt with a packet that was handed over."},
    {"add_entropy", endpoint_add_entropy, METH_VARARGS, "add_entropy(octets): nonces of 16 octets each."},
    {"next_deadline", endpoint_next_deadline, METH_NOARGS, "Monotonic ns at which expire() has work, or None."},
    {"expire", endpoint_expire, METH_VARARGS, "expire(mono_ns)."},
    {"counters", endpoint_counters, METH_NOARGS, "A tuple in the order of fast.Counters."},
    {"teach_policy", endpoint_teach_policy, METH_NOARGS, "Forget what policy has said; returns the new policy's number."},
    {"teach_identity", endpoint_teach_identity, METH_O, "teach_identity(token or None): who the pod is from now on."},
    {"teach", endpoint_teach, METH_VARARGS,
     "teach(peer, local, direction, reason, port, policy, decision, address, key): whether it still holds."},
    {"teach_target", endpoint_teach_target, METH_VARARGS, "teach_target(address, port): it takes tokens and may be dialled."},
    {"forget_target", endpoint_forget_target, METH_VARARGS, "forget_target(address, port)."},
    {"own", endpoint_own, METH_VARARGS, "own(own, own_port, other, other_port, isn=0): Python remembers this connection, or this SYN."},
    {"disown", endpoint_disown, METH_VARARGS, "disown(own, own_port, other, other_port, isn=0)."},
    {"remembered", endpoint_remembered, METH_NOARGS, "The tuples of accepted connections."},
    {"forget", endpoint_forget, METH_VARARGS, "forget(own, own_port, other, other_port): whether it was an accepted connection."},
    {"listen", endpoint_listen, METH_O, "listen(flag): whether accepted connections are to become events."},
    {"take_event", endpoint_take_event, METH_NOARGS,
     "(tuple, peer's number, wall_s, decision, direction, judged address, judged port), or None."},
    {"export", endpoint_export, METH_O, "export(forget): all flows, as hand_over() writes them. For tests."},
    {"set_translate", endpoint_set_translate, METH_O,
     "set_translate(callable or None): (source, port, dialled, port) -> (address, port) or None. For tests; the agent's is in C."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot endpoint_slots[] = {
    {Py_tp_doc, (char *)"Endpoint(engine, half_open, live, peers, verdicts, owned): one pod."},
    {Py_tp_new, endpoint_new},
    {Py_tp_dealloc, endpoint_dealloc},
    {Py_tp_methods, endpoint_methods},
    {0, NULL},
};
static PyType_Spec endpoint_spec = {"trireme_py._fastpath.Endpoint", sizeof(struct endpoint_object), 0, Py_TPFLAGS_DEFAULT,
                                    endpoint_slots};

/* -- for tests -- */

static PyObject *module_mac(PyObject *module, PyObject *args)
{
    uint8_t octets[TR_MAC_SIZE];
    const char *key, *person, *data;
    Py_ssize_t key_size, person_size, size;
    struct tr_part part;
    struct tr_mac *mac;
    bool made;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#y#y#", &key, &key_size, &person, &person_size, &data, &size) ||
        wants(key_size, TR_MAC_KEY_SIZE, "key") < 0 || wants(person_size, TR_PERSON_SIZE, "personalisation") < 0)
        return NULL;
    part = (struct tr_part){data, (size_t)size};
    mac = tr_mac_new();
    made = mac && tr_mac_write(mac, octets, (const uint8_t *)key, person, &part, 1);
    tr_mac_free(mac);
    return made ? PyBytes_FromStringAndSize((const char *)octets, TR_MAC_SIZE) : PyErr_NoMemory();
}

static PyObject *module_siphash(PyObject *module, PyObject *args)
{
    const char *key, *data;
    Py_ssize_t key_size, size;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#y#", &key, &key_size, &data, &size) || wants(key_size, 16, "key") < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(tr_siphash((const uint8_t *)key, data, (size_t)size));
}

static PyObject *module_parse(PyObject *module, PyObject *args)
{
    struct tr_view view;
    enum tr_reason reason;
    const char *data;
    Py_ssize_t size;
    bool tcp;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#", &data, &size))
        return NULL;
    if (!tr_parse_untrusted(&view, (const uint8_t *)data, (uint32_t)size, &reason))
        return PyLong_FromLong(reason);
    tcp = view.protocol == TR_TCP;
    return Py_BuildValue("IIiiNNIiiIIiIii", view.captured, view.length, (int)view.version, (int)view.protocol, address_object(view.source),
                         address_object(view.destination), view.transport, (int)view.source_port, (int)view.destination_port, view.sequence,
                         view.acknowledgement, (int)view.flags, view.body, tcp && tr_checksum_is_right(&view), tcp && tr_has_fast_open(&view));
}

static PyObject *module_complete_sum(PyObject *module, PyObject *args)
{
    const char *data;
    Py_ssize_t size;
    uint8_t *copy;
    PyObject *octets;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#", &data, &size))
        return NULL;
    copy = PyMem_Malloc((size_t)size + 1);
    if (!copy)
        return PyErr_NoMemory();
    memcpy(copy, data, (size_t)size);
    tr_packet_complete_sum(copy, (uint32_t)size);
    octets = PyBytes_FromStringAndSize((const char *)copy, size);
    PyMem_Free(copy);
    return octets;
}

static PyMethodDef module_methods[] = {
    {"mac", module_mac, METH_VARARGS, "mac(key, personalisation, data): keyed BLAKE2s, 16 octets. For tests."},
    {"siphash", module_siphash, METH_VARARGS, "siphash(key, data): SipHash-2-4. For tests."},
    {"parse", module_parse, METH_VARARGS, "parse(packet): what the engine sees of it, or the number of the reason to drop it. For tests."},
    {"complete_sum", module_complete_sum, METH_VARARGS, "complete_sum(packet): the packet with its transport checksum filled in. For tests."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "trireme_py._fastpath",
    .m_doc = "The fast path in C (docs/fastpath.md).",
    .m_size = -1,
    .m_methods = module_methods,
};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromSpec(spec);

    if (type && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

PyMODINIT_FUNC PyInit__fastpath(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (!module)
        return NULL;
    engine_type = add_type(module, &engine_spec);
    token_type = add_type(module, &token_spec);
    endpoint_type = add_type(module, &endpoint_spec);
    if (engine_type && token_type && endpoint_type && tr_module_add_io(module) == 0)
        return module;
    Py_DECREF(module);
    return NULL;
}
