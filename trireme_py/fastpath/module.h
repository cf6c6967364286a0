/* What the files that know Python share. The engine's types are made by module.c, those that do I/O by module_io.c. */
#ifndef TRIREME_MODULE_H
#define TRIREME_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"

/* The C endpoint behind a Python `_fastpath.Endpoint`; NULL, with an exception set, for any other object. It lives as long
 * as the object does. */
struct tr_endpoint *tr_module_endpoint(PyObject *object);

/* Add the types that do I/O to the module. 0, or -1 with an exception set. */
int tr_module_add_io(PyObject *module);

#endif
