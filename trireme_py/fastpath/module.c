#include "module.h"

struct endpoint_object {
    PyObject_HEAD
    struct tr_endpoint *endpoint;
};

struct tr_endpoint *tr_module_endpoint(PyObject *object)
{
    /* The type is checked once it exists. */
    return ((struct endpoint_object *)object)->endpoint;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "trireme_py._fastpath",
    .m_doc = "The fast path in C (docs/fastpath.md).",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__fastpath(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module && tr_module_add_io(module) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
