/* One pod's endpoint as Python sees it. Everything that takes the endpoint's lock does so without the interpreter's, and makes Python objects when
 * both are let go. */
#include "module.h"

#include "octets.h"
#include "packet.h"
#include "teach.h"

enum { OUT = 1 << 16 };

struct endpoint_object {
    PyObject_HEAD
    PyObject *engine;
    PyObject *translate;
    struct tr_endpoint *endpoint;
    uint8_t *out;
};

static PyTypeObject *endpoint_type;

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

/* -- life -- */

static PyObject *endpoint_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct endpoint_object *self;
    struct tr_sizes sizes;
    PyObject *engine;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "OIIIIIII", &engine, &sizes.half_open, &sizes.live, &sizes.peers, &sizes.verdicts, &sizes.owned, &sizes.datagrams,
                          &sizes.live_datagrams))
        return NULL;
    if (!tr_module_engine(engine))
        return NULL;
    self = (struct endpoint_object *)tr_module_allocate(type);
    if (!self)
        return NULL;
    Py_INCREF(engine);
    self->engine = engine;
    self->endpoint = tr_endpoint_new(tr_module_engine(engine), &sizes);
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
    tr_module_free(object);
}

/* -- packets -- */

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

/* -- upkeep -- */

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
    return Py_BuildValue("NNNNNNIIIIIII", list_of(c.drops, TR_REASONS), list_of(c.parked, TR_PARKS), list_of(c.accepted[0], TR_VERDICT_REASONS),
                         list_of(c.accepted[1], TR_VERDICT_REASONS), list_of(c.unrecorded[0], TR_VERDICT_REASONS), list_of(c.unrecorded[1], TR_VERDICT_REASONS), c.clients, c.servers, c.live, c.peers, c.verdicts,
                         c.owned, c.proving);
}

/* -- what Python owns -- */

/* protocol, own address, own port, other address, other port, and a SYN's number where that is meant, and `foreign` */
static int read_tuple(PyObject *args, struct tr_tuple *tuple, bool *foreign)
{
    const char *own, *other;
    Py_ssize_t own_size, other_size;
    unsigned int isn = 0;
    int flag = 0;

    memset(tuple, 0, sizeof *tuple);
    if (!PyArg_ParseTuple(args, "Iy#Hy#H|Ip", &tuple->protocol, &own, &own_size, &tuple->own_port, &other, &other_size, &tuple->other_port, &isn, &flag))
        return -1;
    tuple->isn_or_zero = isn;
    *foreign = flag;
    /* No own address: a SYN of that peer, to whichever port. */
    if (own_size && tr_module_read_address(tuple->own, own, own_size) < 0)
        return -1;
    return tr_module_read_address(tuple->other, other, other_size);
}

static PyObject *endpoint_own(PyObject *object, PyObject *args)
{
    struct tr_tuple tuple;
    bool foreign;

    if (read_tuple(args, &tuple, &foreign) < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_own(endpoint, &tuple, foreign));
    Py_RETURN_NONE;
}

static PyObject *endpoint_own_syn(PyObject *object, PyObject *args)
{
    struct tr_tuple tuple = {.protocol = TR_TCP};
    const char *other, *peer;
    Py_ssize_t other_size, peer_size;

    if (!PyArg_ParseTuple(args, "y#HIy#", &other, &other_size, &tuple.other_port, &tuple.isn_or_zero, &peer, &peer_size))
        return NULL;
    if (tr_module_read_address(tuple.other, other, other_size) < 0 || tr_module_wants(peer_size, TR_ID_SIZE, "peer") < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_own_syn(endpoint, &tuple, (const uint8_t *)peer));
    Py_RETURN_NONE;
}

static PyObject *endpoint_disown(PyObject *object, PyObject *args)
{
    struct tr_tuple tuple;
    bool foreign;

    if (read_tuple(args, &tuple, &foreign) < 0)
        return NULL;
    LOCKED((struct endpoint_object *)object, tr_disown(endpoint, &tuple, foreign));
    Py_RETURN_NONE;
}

/* -- accepted connections, events -- */

static PyObject *tuple_object(const struct tr_tuple *tuple)
{
    return Py_BuildValue("INiNi", tuple->protocol, tr_module_address(tuple->own), tuple->own_port, tr_module_address(tuple->other), tuple->other_port);
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
    bool was_there, foreign;

    if (read_tuple(args, &tuple, &foreign) < 0)
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
                         tr_module_address(event.address), (int)event.port);
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

/* -- translation -- */

static enum tr_shown ask_python(void *context, uint8_t version, uint8_t protocol, const struct tr_end *source, const struct tr_end *dialled, struct tr_end *shown)
{
    PyGILState_STATE state = PyGILState_Ensure();
    enum tr_shown answer = TR_CANNOT_TELL;
    PyObject *said = PyObject_CallFunction(context, "iNiNi", (int)protocol, tr_module_address(source->address), (int)source->port,
                                           tr_module_address(dialled->address), (int)dialled->port);

    (void)version;
    if (said == Py_None)
        answer = TR_NO_CONNECTION;
    else if (said && PyTuple_Check(said) && tr_module_read_end(said, shown) == 0)
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
    {"teach_policy", tr_module_teach_policy, METH_NOARGS, "Forget what policy has said; returns the new policy's number."},
    {"teach_identity", tr_module_teach_identity, METH_O, "teach_identity(token or None): who the pod is from now on."},
    {"teach", tr_module_teach, METH_VARARGS,
     "teach(peer, local, direction, reason, protocol, port, policy, decision, address, key, anybody): whether it still holds."},
    {"teach_target", tr_module_teach_target, METH_VARARGS, "teach_target(address, port): it takes tokens and may be dialled."},
    {"forget_target", tr_module_forget_target, METH_VARARGS, "forget_target(address, port)."},
    {"teach_warm", tr_module_teach_warm, METH_VARARGS,
     "teach_warm(address, port, session, exchange, policy, waits): flows there may go on from an exchange; whether it still holds."},
    {"forget_warm", tr_module_forget_warm, METH_VARARGS, "forget_warm(address, port)."},
    {"teach_ticket", tr_module_teach_ticket, METH_VARARGS, "teach_ticket(session, exchange): a client has proved itself."},
    {"forget_ticket", tr_module_forget_ticket, METH_VARARGS, "forget_ticket(ticket)."},
    {"own", endpoint_own, METH_VARARGS,
     "own(protocol, own, own_port, other, other_port, isn=0, foreign=False): Python remembers this connection, or this SYN."},
    {"own_syn", endpoint_own_syn, METH_VARARGS, "own_syn(other, other_port, isn, peer): Python remembers this SYN, of a peer with this id."},
    {"disown", endpoint_disown, METH_VARARGS, "disown(protocol, own, own_port, other, other_port, isn=0, foreign=False)."},
    {"take_back", tr_module_take_back, METH_VARARGS,
     "take_back(octets, local or None, peer, mono_ns): whether an accepted connection, as hand_over() writes it, is the engine's again."},
    {"remembered", endpoint_remembered, METH_NOARGS, "The tuples of accepted connections."},
    {"forget", endpoint_forget, METH_VARARGS, "forget(protocol, own, own_port, other, other_port): whether it was an accepted connection."},
    {"listen", endpoint_listen, METH_O, "listen(flag): whether accepted connections are to become events."},
    {"take_event", endpoint_take_event, METH_NOARGS,
     "(tuple, peer's number, wall_s, decision, direction, judged address, judged port), or None."},
    {"export", endpoint_export, METH_O, "export(forget): all flows, as hand_over() writes them. For tests."},
    {"set_translate", endpoint_set_translate, METH_O,
     "set_translate(callable or None): (protocol, source, port, dialled, port) -> (address, port) or None. For tests; the agent's is in C."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot endpoint_slots[] = {
    {Py_tp_doc, (char *)"Endpoint(engine, half_open, live, peers, verdicts, owned, datagrams, live_datagrams): one pod."},
    {Py_tp_new, endpoint_new},
    {Py_tp_dealloc, endpoint_dealloc},
    {Py_tp_methods, endpoint_methods},
    {0, NULL},
};
static PyType_Spec endpoint_spec = {"trireme_py._fastpath.Endpoint", sizeof(struct endpoint_object), 0, Py_TPFLAGS_DEFAULT,
                                    endpoint_slots};

int tr_module_add_endpoint(PyObject *module)
{
    endpoint_type = tr_module_add_type(module, &endpoint_spec);
    return endpoint_type ? 0 : -1;
}
