#include "module.h"

int tr_module_add_io(PyObject *module)
{
    (void)module;
    return 0;
}
