#include "module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/netfilter.h>

#include "conntrack.h"
#include "worker.h"

static PyObject *workers_type, *queue_type, *conntrack_type;

static PyObject *raise_errno(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *make(PyTypeObject *type)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return allocate(type, 0);
}

static void release(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc set_free = (freefunc)PyType_GetSlot(type, Py_tp_free);
    set_free(self);
    Py_DECREF(type);
}

/* -- Workers -------------------------------------------------------------------------------------------------------- */

struct workers_object {
    PyObject_HEAD
    struct tr_workers *workers;
};

static PyObject *workers_new(PyTypeObject *type, PyObject *arguments, PyObject *words)
{
    static char *names[] = {"count", NULL};
    unsigned count;
    if (!PyArg_ParseTupleAndKeywords(arguments, words, "I", names, &count)) return NULL;
    if (count < 1 || count > 1024) return PyErr_Format(PyExc_ValueError, "workers: %u, not from 1 to 1024", count);
    struct workers_object *self = (struct workers_object *)make(type);
    if (self == NULL) return NULL;
    self->workers = tr_workers_new(count);
    if (self->workers == NULL) {
        raise_errno(errno);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void workers_dealloc(PyObject *object)
{
    struct workers_object *self = (struct workers_object *)object;
    if (self->workers != NULL) { /* every queue holds on to us, so none is left */
        Py_BEGIN_ALLOW_THREADS
        tr_workers_free(self->workers);
        Py_END_ALLOW_THREADS
    }
    release(object);
}

static PyType_Slot workers_slots[] = {
    {Py_tp_doc, "Workers(count)\n--\n\nThreads that serve pods' queues. They end when the last queue and this are gone."},
    {Py_tp_new, workers_new},
    {Py_tp_dealloc, workers_dealloc},
    {0, NULL},
};
static PyType_Spec workers_spec = {
    .name = "trireme_py._fastpath.Workers",
    .basicsize = sizeof(struct workers_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = workers_slots,
};

/* -- Conntrack ------------------------------------------------------------------------------------------------------ */

struct conntrack_object {
    PyObject_HEAD
    struct tr_conntrack conntrack;
};

static PyObject *conntrack_new(PyTypeObject *type, PyObject *arguments, PyObject *words)
{
    static char *names[] = {"fd", NULL};
    int fd;
    if (!PyArg_ParseTupleAndKeywords(arguments, words, "i", names, &fd)) return NULL;
    struct conntrack_object *self = (struct conntrack_object *)make(type);
    if (self == NULL) return NULL;
    self->conntrack.fd = fd;
    pthread_mutex_init(&self->conntrack.lock, NULL);
    return (PyObject *)self;
}

static void conntrack_dealloc(PyObject *object)
{
    struct conntrack_object *self = (struct conntrack_object *)object;
    if (self->conntrack.fd >= 0) close(self->conntrack.fd);
    pthread_mutex_destroy(&self->conntrack.lock);
    release(object);
}

static PyObject *conntrack_close(PyObject *object, PyObject *Py_UNUSED(nothing))
{
    struct tr_conntrack *conntrack = &((struct conntrack_object *)object)->conntrack;
    pthread_mutex_lock(&conntrack->lock); /* its holder never waits for Python */
    if (conntrack->fd >= 0) close(conntrack->fd);
    conntrack->fd = -1;
    pthread_mutex_unlock(&conntrack->lock);
    Py_RETURN_NONE;
}

static PyObject *conntrack_get(PyObject *object, PyObject *arguments)
{
    struct conntrack_object *self = (struct conntrack_object *)object;
    struct tr_direction original = {0}, reply;
    const char *source, *destination;
    Py_ssize_t source_size, destination_size;
    if (!PyArg_ParseTuple(arguments, "by#Hy#H", &original.protocol, &source, &source_size, &original.source_port,
                          &destination, &destination_size, &original.destination_port))
        return NULL;
    if (source_size != destination_size || (source_size != 4 && source_size != 16))
        return PyErr_Format(PyExc_ValueError, "addresses of %zd and %zd octets", source_size, destination_size);
    original.ipv6 = source_size == 16;
    memcpy(original.source, source, (size_t)source_size);
    memcpy(original.destination, destination, (size_t)source_size);
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = tr_conntrack_get(&self->conntrack, &original, &reply);
    Py_END_ALLOW_THREADS
    if (error == -ENOENT) Py_RETURN_NONE;
    if (error != 0) return raise_errno(-error);
    return Py_BuildValue("y#i", reply.source, (Py_ssize_t)(reply.ipv6 ? 16 : 4), (int)reply.source_port);
}

static PyMethodDef conntrack_methods[] = {
    {"close", conntrack_close, METH_NOARGS, "close()\n--\n\nClose the descriptor."},
    {"get", conntrack_get, METH_VARARGS,
     "get(protocol, source, source_port, destination, destination_port)\n--\n\n"
     "Return (address, port) that answers in the connection begun so, or None if there is none. Raises OSError."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot conntrack_slots[] = {
    {Py_tp_doc, "Conntrack(fd)\n--\n\nThe connection tracking of the namespace that netfilter netlink socket fd was made in."},
    {Py_tp_new, conntrack_new},
    {Py_tp_dealloc, conntrack_dealloc},
    {Py_tp_methods, conntrack_methods},
    {0, NULL},
};
static PyType_Spec conntrack_spec = {
    .name = "trireme_py._fastpath.Conntrack",
    .basicsize = sizeof(struct conntrack_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = conntrack_slots,
};

static const uint8_t mapped[12] = {[10] = 0xFF, [11] = 0xFF};

/* What the engine asks (tr_translate). */
static enum tr_shown show(void *context, uint8_t version, uint8_t protocol, const struct tr_end *source,
                          const struct tr_end *dialled, struct tr_end *shown)
{
    struct tr_direction original = {.ipv6 = version == 6,
                                    .protocol = protocol,
                                    .source_port = source->port,
                                    .destination_port = dialled->port};
    struct tr_direction reply;
    size_t skip = original.ipv6 ? 0 : 12, size = 16 - skip;
    memcpy(original.source, source->address + skip, size);
    memcpy(original.destination, dialled->address + skip, size);
    int error = tr_conntrack_get(context, &original, &reply);
    if (error == -ENOENT) return TR_NO_CONNECTION;
    if (error != 0) return TR_CANNOT_TELL;
    memcpy(shown->address, mapped, skip);
    memcpy(shown->address + skip, reply.source, size);
    shown->port = reply.source_port;
    return TR_SHOWN;
}

/* -- Queue ---------------------------------------------------------------------------------------------------------- */

struct queue_object {
    PyObject_HEAD
    struct tr_pod *pod; /* NULL once it is closed */
    PyObject *workers, *endpoint, *conntrack;
};

static PyObject *queue_new(PyTypeObject *type, PyObject *arguments, PyObject *words)
{
    static char *names[] = {"fd", "number", "marks", "foreign_passes", NULL};
    struct tr_marks marks;
    unsigned short number;
    int fd, foreign_passes;
    if (!PyArg_ParseTupleAndKeywords(arguments, words, "iH(IIII)p", names, &fd, &number, &marks.mask, &marks.pass,
                                     &marks.pass_clear, &marks.accept, &foreign_passes))
        return NULL;
    struct queue_object *self = (struct queue_object *)make(type);
    if (self == NULL) return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    self->pod = tr_pod_new(fd, number, &marks, foreign_passes);
    error = errno;
    Py_END_ALLOW_THREADS
    if (self->pod == NULL) {
        raise_errno(error);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static struct tr_pod *opened(PyObject *object)
{
    struct tr_pod *pod = ((struct queue_object *)object)->pod;
    if (pod == NULL) PyErr_SetString(PyExc_ValueError, "the queue is closed");
    return pod;
}

static struct tr_pod *started(PyObject *object)
{
    struct tr_pod *pod = opened(object);
    if (pod == NULL || ((struct queue_object *)object)->endpoint != NULL) return pod;
    PyErr_SetString(PyExc_ValueError, "the queue is not started");
    return NULL;
}

static PyObject *queue_start(PyObject *object, PyObject *arguments)
{
    struct queue_object *self = (struct queue_object *)object;
    PyObject *workers, *endpoint, *conntrack;
    if (!PyArg_ParseTuple(arguments, "O!OO", workers_type, &workers, &endpoint, &conntrack)) return NULL;
    struct tr_pod *pod = opened(object);
    struct tr_endpoint *judge = tr_module_endpoint(endpoint);
    if (pod == NULL || judge == NULL) return NULL;
    if (self->endpoint != NULL) return PyErr_Format(PyExc_ValueError, "the queue is started already");
    if (conntrack != Py_None && !Py_IS_TYPE(conntrack, (PyTypeObject *)conntrack_type))
        return PyErr_Format(PyExc_TypeError, "conntrack: not a Conntrack");
    int error;
    Py_BEGIN_ALLOW_THREADS
    if (conntrack != Py_None) {
        tr_endpoint_lock(judge);
        tr_engine_set_translate(judge, show, &((struct conntrack_object *)conntrack)->conntrack);
        tr_endpoint_unlock(judge);
    }
    error = tr_pod_start(pod, ((struct workers_object *)workers)->workers, judge);
    Py_END_ALLOW_THREADS
    if (error != 0) return raise_errno(-error);
    self->workers = Py_NewRef(workers);
    self->endpoint = Py_NewRef(endpoint);
    self->conntrack = Py_NewRef(conntrack);
    Py_RETURN_NONE;
}

static void close_pod(struct queue_object *self)
{
    struct tr_pod *pod = self->pod;
    self->pod = NULL;
    if (pod == NULL) return;
    struct tr_endpoint *endpoint = self->endpoint == NULL ? NULL : tr_module_endpoint(self->endpoint);
    Py_BEGIN_ALLOW_THREADS
    tr_pod_free(pod);
    if (endpoint != NULL) { /* it may outlive what it asks */
        tr_endpoint_lock(endpoint);
        tr_engine_set_translate(endpoint, NULL, NULL);
        tr_endpoint_unlock(endpoint);
    }
    Py_END_ALLOW_THREADS
}

static void queue_dealloc(PyObject *object)
{
    struct queue_object *self = (struct queue_object *)object;
    close_pod(self);
    Py_XDECREF(self->workers);
    Py_XDECREF(self->endpoint);
    Py_XDECREF(self->conntrack);
    release(object);
}

static PyObject *queue_close(PyObject *object, PyObject *Py_UNUSED(nothing))
{
    close_pod((struct queue_object *)object);
    Py_RETURN_NONE;
}

static PyObject *queue_fileno(PyObject *object, PyObject *Py_UNUSED(nothing))
{
    struct tr_pod *pod = opened(object);
    return pod == NULL ? NULL : PyLong_FromLong(tr_pod_wakeup(pod));
}

static PyObject *queue_set_accept(PyObject *object, PyObject *mark)
{
    struct tr_pod *pod = opened(object);
    unsigned long value = PyLong_AsUnsignedLong(mark);
    if (pod == NULL || PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    tr_pod_set_accept(pod, (uint32_t)value);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *queue_poll(PyObject *object, PyObject *Py_UNUSED(nothing))
{
    struct tr_pod *pod = started(object);
    if (pod == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS
    tr_pod_poll(pod);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *queue_take(PyObject *object, PyObject *most)
{
    struct tr_pod *pod = started(object);
    size_t limit = PyLong_AsSize_t(most);
    if (pod == NULL || PyErr_Occurred()) return NULL;
    int error = tr_pod_error(pod);
    if (error != 0) return raise_errno(-error);
    PyObject *taken = PyList_New(0);
    struct tr_parked *next, *parked = tr_pod_take(pod, limit);
    for (; parked != NULL; parked = next) {
        next = parked->next;
        PyObject *item = taken == NULL ? NULL
                                       : Py_BuildValue("IIiy#y#", parked->id, parked->mark, (int)parked->hook,
                                                       parked->data, (Py_ssize_t)parked->captured,
                                                       parked->data + parked->captured, (Py_ssize_t)parked->handover);
        if (item == NULL || PyList_Append(taken, item) != 0) Py_CLEAR(taken);
        Py_XDECREF(item);
        free(parked);
    }
    return taken;
}

static PyObject *queue_answer(PyObject *object, PyObject *arguments)
{
    struct tr_pod *pod = started(object);
    unsigned id, mark;
    int passes;
    const char *data;
    Py_ssize_t length;
    if (pod == NULL || !PyArg_ParseTuple(arguments, "IpIz#", &id, &passes, &mark, &data, &length)) return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = tr_pod_answer(pod, id, passes ? NF_REPEAT : NF_DROP, mark, (const uint8_t *)data,
                          length > UINT16_MAX ? UINT16_MAX : (uint32_t)length);
    Py_END_ALLOW_THREADS
    if (error != 0) return raise_errno(-error);
    Py_RETURN_NONE;
}

static PyObject *queue_counters(PyObject *object, PyObject *Py_UNUSED(nothing))
{
    struct tr_pod *pod = opened(object);
    if (pod == NULL) return NULL;
    struct tr_pod_counters now;
    Py_BEGIN_ALLOW_THREADS
    tr_pod_counters(pod, &now);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("KKKKKK", now.packets[TR_NETWORK], now.packets[TR_APPLICATION], now.truncated, now.foreign,
                         now.refused + now.malformed, now.turned_away);
}

static PyMethodDef queue_methods[] = {
    {"close", queue_close, METH_NOARGS, "close()\n--\n\nLet go of the queue; the kernel drops what waits in it."},
    {"fileno", queue_fileno, METH_NOARGS, "fileno()\n--\n\nReturn a descriptor that is readable when take() has something."},
    {"set_accept", queue_set_accept, METH_O, "set_accept(mark)\n--\n\nMark accepted connections so from the next packet on."},
    {"start", queue_start, METH_VARARGS,
     "start(workers, endpoint, conntrack)\n--\n\nHave an Endpoint judge what comes. Once, before anything below. Raises OSError."},
    {"poll", queue_poll, METH_NOARGS, "poll()\n--\n\nRead and judge what waits in the queue right now."},
    {"take", queue_take, METH_O,
     "take(most)\n--\n\nReturn up to `most` parked packets as (id, mark, hook, packet, handover). Raises OSError when the\n"
     "queue is of no use any more."},
    {"answer", queue_answer, METH_VARARGS,
     "answer(id, passes, mark, packet)\n--\n\nGive a packet that was taken its verdict, with other octets unless None. Raises\n"
     "OSError."},
    {"counters", queue_counters, METH_NOARGS,
     "counters()\n--\n\nReturn what was counted: packets that arrived and that left, truncated ones, ones of a foreign rule,\n"
     "verdicts that failed, packets dropped in place of being parked."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot queue_slots[] = {
    {Py_tp_doc,
     "Queue(fd, number, marks, foreign_passes)\n--\n\n"
     "Queue `number` of the namespace that netfilter netlink socket `fd` was made in. The descriptor is the queue's, even when\n"
     "it raises OSError. `marks`: mask, pass, pass and clear, accept."},
    {Py_tp_new, queue_new},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_methods, queue_methods},
    {0, NULL},
};
static PyType_Spec queue_spec = {
    .name = "trireme_py._fastpath.Queue",
    .basicsize = sizeof(struct queue_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = queue_slots,
};

static PyObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, (PyTypeObject *)type) != 0) Py_CLEAR(type);
    return type;
}

int tr_module_add_io(PyObject *module)
{
    return (workers_type = add_type(module, &workers_spec)) != NULL &&
                   (conntrack_type = add_type(module, &conntrack_spec)) != NULL &&
                   (queue_type = add_type(module, &queue_spec)) != NULL
               ? 0
               : -1;
}
