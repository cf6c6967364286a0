/* What the files that know Python share: module.c, module_endpoint.c for one pod's engine, module_session.c for what goes on from an exchange, module_io.c for
 * what does I/O. */
#ifndef TRIREME_MODULE_H
#define TRIREME_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"

struct tr_token;
struct tr_session;
struct tr_end;

/* What is behind a Python object; NULL, with an exception set, for one of another type. It lives as long as the object does. */
struct tr_engine *tr_module_engine(PyObject *object);
struct tr_token *tr_module_token(PyObject *object);
struct tr_session *tr_module_session(PyObject *object);
struct tr_endpoint *tr_module_endpoint(PyObject *object);

/* Add types to the module. 0, or -1 with an exception set. */
int tr_module_add_endpoint(PyObject *module);
int tr_module_add_io(PyObject *module);
int tr_module_add_session(PyObject *module);

/* Make a type and add it under its name; NULL with an exception set. */
PyTypeObject *tr_module_add_type(PyObject *module, PyType_Spec *spec);

/* An object of a type, zeroed behind its head; and the last step of its deallocation. */
PyObject *tr_module_allocate(PyTypeObject *type);
void tr_module_free(PyObject *self);

/* 0, or -1 with an exception that names what is too long or too short. */
int tr_module_wants(Py_ssize_t size, Py_ssize_t wanted, const char *what);

/* An address of 4 or 16 octets, in the form of the tables, and back. */
int tr_module_read_address(uint8_t address[16], const char *octets, Py_ssize_t size);
PyObject *tr_module_address(const uint8_t address[16]);

/* The arguments (address, port). 0, or -1 with an exception set. */
int tr_module_read_end(PyObject *args, struct tr_end *end);

/* Methods of an endpoint (module_teach.c). */
PyObject *tr_module_teach_policy(PyObject *object, PyObject *args);
PyObject *tr_module_teach_identity(PyObject *object, PyObject *args);
PyObject *tr_module_teach(PyObject *object, PyObject *args);
PyObject *tr_module_teach_target(PyObject *object, PyObject *args);
PyObject *tr_module_forget_target(PyObject *object, PyObject *args);
PyObject *tr_module_teach_warm(PyObject *object, PyObject *args);
PyObject *tr_module_forget_warm(PyObject *object, PyObject *args);
PyObject *tr_module_teach_ticket(PyObject *object, PyObject *args);
PyObject *tr_module_forget_ticket(PyObject *object, PyObject *args);
PyObject *tr_module_take_back(PyObject *object, PyObject *args);

#endif
