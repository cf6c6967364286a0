/* What goes on from an exchange of a moment ago, as Python sees it: the counters of datagram_flows.Warm and .Ticket. */
#include "module.h"

#include <structmember.h>

#include "teach.h"

struct session_object {
    PyObject_HEAD
    struct tr_session *session;
    unsigned int number;
};

static PyTypeObject *session_type;

struct tr_session *tr_module_session(PyObject *object)
{
    if (PyObject_TypeCheck(object, session_type))
        return ((struct session_object *)object)->session;
    PyErr_SetString(PyExc_TypeError, "not a _fastpath.Session");
    return NULL;
}

static PyObject *session_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct session_object *self;
    unsigned int number;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "I", &number))
        return NULL;
    self = (struct session_object *)tr_module_allocate(type);
    if (!self)
        return NULL;
    self->number = number;
    self->session = tr_session_new(number);
    if (self->session)
        return (PyObject *)self;
    Py_DECREF(self);
    return PyErr_NoMemory();
}

static void session_dealloc(PyObject *object)
{
    struct session_object *self = (struct session_object *)object;

    if (self->session)
        tr_session_release(self->session);
    tr_module_free(object);
}

static PyObject *session_take(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(tr_session_take(((struct session_object *)self)->session));
}

static int read_counter(PyObject *number, unsigned long long *counter)
{
    *counter = PyLong_AsUnsignedLongLong(number);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *session_is_fresh(PyObject *self, PyObject *number)
{
    unsigned long long counter;

    if (read_counter(number, &counter) < 0)
        return NULL;
    return PyBool_FromLong(tr_session_is_fresh(((struct session_object *)self)->session, counter));
}

static PyObject *session_commit(PyObject *self, PyObject *number)
{
    unsigned long long counter;

    if (read_counter(number, &counter) < 0)
        return NULL;
    return PyBool_FromLong(tr_session_commit(((struct session_object *)self)->session, counter));
}

static PyObject *session_touch(PyObject *self, PyObject *number)
{
    unsigned long long mono_ns;

    if (read_counter(number, &mono_ns) < 0)
        return NULL;
    tr_session_touch(((struct session_object *)self)->session, mono_ns);
    Py_RETURN_NONE;
}

static PyObject *session_used(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(tr_session_used(((struct session_object *)self)->session));
}

static PyObject *session_in_use(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(tr_session_references(((struct session_object *)self)->session) > 1);
}

static PyMethodDef session_methods[] = {
    {"take", session_take, METH_NOARGS, "The next counter, from 1."},
    {"is_fresh", session_is_fresh, METH_O, "Tell whether a counter was not seen and is not too old to tell."},
    {"commit", session_commit, METH_O, "Remember a counter; tell whether it was fresh until now."},
    {"touch", session_touch, METH_O, "touch(mono_ns): it was used."},
    {"used", session_used, METH_NOARGS, "When it was used last, by whomever; monotonic ns."},
    {"in_use", session_in_use, METH_NOARGS, "Tell whether the engine still refers to it."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef session_members[] = {
    {"number", T_UINT, offsetof(struct session_object, number), READONLY, "The caller's own number for it."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot session_slots[] = {
    {Py_tp_doc, (char *)"Session(number): a counter that is given away, or a window of those that were seen; not both."},
    {Py_tp_new, session_new},
    {Py_tp_dealloc, session_dealloc},
    {Py_tp_methods, session_methods},
    {Py_tp_members, session_members},
    {0, NULL},
};
static PyType_Spec session_spec = {"trireme_py._fastpath.Session", sizeof(struct session_object), 0, Py_TPFLAGS_DEFAULT, session_slots};

int tr_module_add_session(PyObject *module)
{
    session_type = tr_module_add_type(module, &session_spec);
    return session_type ? 0 : -1;
}
