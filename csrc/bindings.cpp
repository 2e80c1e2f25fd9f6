// The Python module gpualloc._C: what this build is, and pack and unpack without the dispatcher. The operations register themselves
// (ops.cpp), the hook is in hook_bindings.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <stdexcept>

#include "cpu/convert.h"
#include "exchange_bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace gpualloc {
void bind_hook(py::module_& module);  // hook_bindings.cpp
}

namespace {

// --- the operations, straight from Python lists: a call through torch.ops.gpualloc takes 20 microseconds longer for 150 tensors ---

using Tensors = c10::SmallVector<at::Tensor, 8>;

const at::Tensor& tensor_of(py::handle object, const char* argument) {
  if (!THPVariable_Check(object.ptr())) {
    throw py::type_error(std::string(argument) + ": expected a torch.Tensor, got " + Py_TYPE(object.ptr())->tp_name);
  }
  return THPVariable_Unpack(object.ptr());
}

Tensors tensors_of(const py::sequence& sequence) {
  const py::object fast = py::reinterpret_steal<py::object>(PySequence_Fast(sequence.ptr(), "tensors: expected a list or a tuple"));
  if (!fast) throw py::error_already_set();
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(fast.ptr());
  Tensors tensors;
  tensors.reserve(static_cast<size_t>(size));
  for (Py_ssize_t i = 0; i < size; ++i) tensors.push_back(tensor_of(PySequence_Fast_GET_ITEM(fast.ptr(), i), "tensors"));
  return tensors;
}

std::optional<at::Tensor> counter_of(py::handle object, const char* argument) {
  if (object.is_none()) return std::nullopt;
  return tensor_of(object, argument);
}

// Whether the dispatcher must see the call: a mode is active (tracing, fake tensors), or a tensor is more than its data.
bool needs_dispatcher(at::TensorList tensors, const at::Tensor& flat) {
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return true;
  constexpr c10::DispatchKeySet special({c10::DispatchKey::Python, c10::DispatchKey::Functionalize, c10::DispatchKey::FuncTorchGradWrapper,
                                         c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Meta});
  const auto is_special = [&](const at::Tensor& tensor) { return tensor.key_set().has_any(special); };
  return is_special(flat) || std::any_of(tensors.begin(), tensors.end(), is_special);
}

template <typename Signature>
auto operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void pack(const py::sequence& sequence, py::handle out, double scale, py::handle nonfinite_counter) {
  const Tensors tensors = tensors_of(sequence);
  const at::Tensor flat = tensor_of(out, "out");
  const std::optional<at::Tensor> nonfinite = counter_of(nonfinite_counter, "nonfinite");
  const py::gil_scoped_release no_gil;
  if (!needs_dispatcher(tensors, flat)) return gpualloc::pack(tensors, flat, scale, {nonfinite, {}, {}});
  static const auto dispatched = operation<void(at::TensorList, const at::Tensor&, double, const std::optional<at::Tensor>&)>("gpualloc::pack");
  dispatched.call(tensors, flat, scale, nonfinite);
}

void unpack(py::handle wire, const py::sequence& sequence, double scale, py::handle sumsq_counter, py::handle nonfinite_counter) {
  const Tensors tensors = tensors_of(sequence);
  const at::Tensor flat = tensor_of(wire, "flat");
  const std::optional<at::Tensor> sumsq = counter_of(sumsq_counter, "sumsq"), nonfinite = counter_of(nonfinite_counter, "nonfinite");
  const py::gil_scoped_release no_gil;
  if (!needs_dispatcher(tensors, flat)) return gpualloc::unpack(flat, tensors, scale, {nonfinite, sumsq, {}});
  static const auto dispatched = operation<void(const at::Tensor&, at::TensorList, double, const std::optional<at::Tensor>&,
                                                const std::optional<at::Tensor>&)>("gpualloc::unpack");
  dispatched.call(flat, tensors, scale, sumsq, nonfinite);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled half of gpualloc; use gpualloc.ops and gpualloc.comm.";
  module.attr("torch_version") = GPUALLOC_TORCH_VERSION;
#ifdef GPUALLOC_CUDA
  module.attr("cuda_version") = GPUALLOC_CUDA;
#else
  module.attr("cuda_version") = py::none();
#endif
  module.attr("cpu_isa") = gpualloc::cpu::converters().isa;

  module.def("pack", &pack, py::arg("tensors"), py::arg("out"), py::arg("scale"), py::arg("nonfinite"));
  module.def("unpack", &unpack, py::arg("flat"), py::arg("tensors"), py::arg("scale"), py::arg("sumsq"), py::arg("nonfinite"));
  bind_exchange(module);
  gpualloc::bind_hook(module);
}
