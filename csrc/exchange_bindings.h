#pragma once

#include <pybind11/pybind11.h>

void bind_exchange(pybind11::module_& module);
