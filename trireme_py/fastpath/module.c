/* The fast path as Python sees it (`trireme_py._fastpath`): what all endpoints share, and the parts that tests look at. fast.py is its only
 * other user. */
#include "module.h"

#include <structmember.h>

#include "octets.h"
#include "packet.h"
#include "siphash.h"
#include "teach.h"

struct engine_object {
    PyObject_HEAD
    struct tr_engine *engine;
};

struct token_object {
    PyObject_HEAD
    struct tr_token *token;
    unsigned int number;
};

static PyTypeObject *engine_type, *token_type;

void tr_module_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    release(self);
    Py_DECREF(type);
}

PyObject *tr_module_allocate(PyTypeObject *type)
{
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

int tr_module_wants(Py_ssize_t size, Py_ssize_t wanted, const char *what)
{
    if (size == wanted)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s has %zd octets, not %zd", what, size, wanted);
    return -1;
}

/* An address of 4 or 16 octets, in the form of the tables. */
int tr_module_read_address(uint8_t address[16], const char *octets, Py_ssize_t size)
{
    if (size == 4)
        tr_map_v4(address, (const uint8_t *)octets);
    else if (size == 16)
        memcpy(address, octets, 16);
    else
        return tr_module_wants(size, 16, "address");
    return 0;
}

PyObject *tr_module_address(const uint8_t address[16])
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
    if (!PyArg_ParseTuple(args, "y#", &seed, &size) || tr_module_wants(size, 16, "seed") < 0)
        return NULL;
    self = (struct engine_object *)tr_module_allocate(type);
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
    tr_module_free(self);
}

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, (char *)"Engine(seed): what all endpoints share."},
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {0, NULL},
};
static PyType_Spec engine_spec = {"trireme_py._fastpath.Engine", sizeof(struct engine_object), 0, Py_TPFLAGS_DEFAULT, engine_slots};

struct tr_engine *tr_module_engine(PyObject *object)
{
    if (PyObject_TypeCheck(object, engine_type))
        return ((struct engine_object *)object)->engine;
    PyErr_SetString(PyExc_TypeError, "not a _fastpath.Engine");
    return NULL;
}

/* -- Token -- */

static PyObject *token_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct token_object *self;
    unsigned int number;
    const char *id, *assertion;
    Py_ssize_t id_size, size;
    double not_after;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "Iy#y#d", &number, &id, &id_size, &assertion, &size, &not_after) || tr_module_wants(id_size, TR_ID_SIZE, "id") < 0)
        return NULL;
    if (size > TR_MAX_ASSERTION)
        return PyErr_Format(PyExc_ValueError, "an assertion of %zd octets", size);
    self = (struct token_object *)tr_module_allocate(type);
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
    tr_module_free(object);
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

struct tr_token *tr_module_token(PyObject *object)
{
    if (PyObject_TypeCheck(object, token_type))
        return ((struct token_object *)object)->token;
    PyErr_SetString(PyExc_TypeError, "not a _fastpath.Token");
    return NULL;
}

/* -- for tests -- */

static PyObject *module_mac(PyObject *module, PyObject *args)
{
    uint8_t octets[TR_MAC_SIZE];
    const char *key, *data;
    Py_ssize_t key_size, size;
    unsigned int role;
    struct tr_part part;
    struct tr_mac *mac;
    bool made;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#Iy#", &key, &key_size, &role, &data, &size) || tr_module_wants(key_size, TR_MAC_KEY_SIZE, "key") < 0)
        return NULL;
    if (role >= TR_ROLES)
        return PyErr_Format(PyExc_ValueError, "role %u: 0 to %d", role, TR_ROLES - 1);
    part = (struct tr_part){data, (size_t)size};
    mac = tr_mac_new();
    made = mac && tr_mac_write(mac, octets, (const uint8_t *)key, (enum tr_role)role, &part, 1);
    tr_mac_free(mac);
    return made ? PyBytes_FromStringAndSize((const char *)octets, TR_MAC_SIZE) : PyErr_NoMemory();
}

static PyObject *module_siphash(PyObject *module, PyObject *args)
{
    const char *key, *data;
    Py_ssize_t key_size, size;

    (void)module;
    if (!PyArg_ParseTuple(args, "y#y#", &key, &key_size, &data, &size) || tr_module_wants(key_size, 16, "key") < 0)
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
    return Py_BuildValue("IIiiNNIiiIIiIii", view.captured, view.length, (int)view.version, (int)view.protocol, tr_module_address(view.source),
                         tr_module_address(view.destination), view.transport, (int)view.source_port, (int)view.destination_port, view.sequence,
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
    {"mac", module_mac, METH_VARARGS, "mac(key, role, data): keyed BLAKE2s, 16 octets, personalised for SYN-ACK, ACK, RESUME or CONFIRM (0 to 3). For tests."},
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

PyTypeObject *tr_module_add_type(PyObject *module, PyType_Spec *spec)
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
    engine_type = tr_module_add_type(module, &engine_spec);
    token_type = tr_module_add_type(module, &token_spec);
    if (engine_type && token_type && tr_module_add_endpoint(module) == 0 && tr_module_add_session(module) == 0 && tr_module_add_io(module) == 0)
        return module;
    Py_DECREF(module);
    return NULL;
}
