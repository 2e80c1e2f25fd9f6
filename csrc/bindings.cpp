// The Python module gpualloc._C: the hook's class and what this build is. The operations register themselves (ops.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <stdexcept>

#include "cpu/convert.h"
#include "ddp/gradient_hook.h"
#include "ops.h"

namespace py = pybind11;

namespace {

gpualloc::Wire parse_wire(const std::string& wire) {
  if (wire == "fp32") return gpualloc::Wire::fp32;
  if (wire == "fp16") return gpualloc::Wire::fp16;
  if (wire == "bf16") return gpualloc::Wire::bf16;
  throw std::invalid_argument("wire: expected fp32, fp16 or bf16, got " + wire);
}

std::shared_ptr<gpualloc::GradientHookState> register_gradient_hook(const std::shared_ptr<c10d::Reducer>& reducer,
                                                                    c10d::ProcessGroup& group, const std::string& wire,
                                                                    bool sum_squares, bool dynamic_scale) {
  // By reference and not by holder: torch registers process groups with a holder type of its own.
  auto shared_group = c10::intrusive_ptr<c10d::ProcessGroup>::unsafe_reclaim_from_nonowning(&group);
  // The state may be its group's last owner, and a group's end waits for threads that may want the interpreter.
  const auto free_without_interpreter = [](gpualloc::GradientHookState* state) {
    if (PyGILState_Check() == 0) return delete state;
    const py::gil_scoped_release no_gil;
    delete state;
  };
  const std::shared_ptr<gpualloc::GradientHookState> state(
      new gpualloc::GradientHookState(std::move(shared_group), parse_wire(wire), sum_squares, dynamic_scale), free_without_interpreter);
  reducer->register_comm_hook(std::make_unique<gpualloc::GradientHook>(state));
  return state;
}

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

  using gpualloc::HookTotals;
  py::class_<HookTotals>(module, "HookTotals")
      .def(py::init([](int64_t steps, int64_t buckets, int64_t wire_bytes, int64_t nonfinite_steps) {
             return HookTotals{steps, buckets, wire_bytes, nonfinite_steps};
           }),
           py::kw_only(), py::arg("steps"), py::arg("buckets"), py::arg("wire_bytes"), py::arg("nonfinite_steps"))
      .def_readonly("steps", &HookTotals::steps)
      .def_readonly("buckets", &HookTotals::buckets)
      .def_readonly("wire_bytes", &HookTotals::wire_bytes)
      .def_readonly("nonfinite_steps", &HookTotals::nonfinite_steps);

  using gpualloc::GradientHookState;
  py::class_<GradientHookState, std::shared_ptr<GradientHookState>>(module, "GradientHookState")
      .def("totals", &GradientHookState::totals, py::call_guard<py::gil_scoped_release>())
      .def("wire_scale", &GradientHookState::wire_scale, py::call_guard<py::gil_scoped_release>())
      .def("load", &GradientHookState::load, py::call_guard<py::gil_scoped_release>())
      .def("last_nonfinite", &GradientHookState::last_nonfinite, py::call_guard<py::gil_scoped_release>())
      .def("last_sumsq", &GradientHookState::last_sumsq, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("counts_nonfinite", &GradientHookState::counts_nonfinite);

  module.def("register_gradient_hook", &register_gradient_hook, py::arg("reducer"), py::arg("process_group"), py::arg("wire"),
             py::arg("sum_squares"), py::arg("dynamic_scale"));
}
