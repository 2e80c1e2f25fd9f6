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
#include <vector>

#include "cpu/convert.h"
#include "exchange_bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace gpualloc {
void bind_hook(py::module_& module);       // hook_bindings.cpp
void bind_rehearsal(py::module_& module);  // rehearsal_bindings.cpp
}

namespace {

// --- the operations, straight from Python lists: a call through torch.ops.gpualloc takes 20 microseconds longer for 150 tensors ---

const at::Tensor& tensor_of(py::handle object, const char* argument) {
  if (!THPVariable_Check(object.ptr())) {
    throw py::type_error(std::string(argument) + ": expected a torch.Tensor, got " + Py_TYPE(object.ptr())->tp_name);
  }
  return THPVariable_Unpack(object.ptr());
}

// The tensors of a sequence where they are, kept alive by a tuple, which costs less than a reference to each at::Tensor. A training step
// has used the caches for other things, and 160 tensors are 800 misses; asked for ahead, level by level, they are waited for side by side.
class Borrowed {
 public:
  explicit Borrowed(const py::sequence& sequence) : owner_(py::reinterpret_steal<py::object>(PySequence_Tuple(sequence.ptr()))) {
    if (!owner_) throw py::error_already_set();
    const c10::ArrayRef<PyObject*> items(PySequence_Fast_ITEMS(owner_.ptr()), static_cast<size_t>(PyTuple_GET_SIZE(owner_.ptr())));
    for (PyObject* item : items) __builtin_prefetch(item);
    pointers_.reserve(items.size());
    for (PyObject* item : items) {
      pointers_.push_back(&tensor_of(item, "tensors"));
      const auto* const impl = reinterpret_cast<const char*>(pointers_.back()->unsafeGetTensorImpl());
      for (size_t offset = 0; offset < sizeof(c10::TensorImpl); offset += kCacheLine) __builtin_prefetch(impl + offset);
    }
    for (const at::Tensor* tensor : pointers_) __builtin_prefetch(tensor->unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  }

  operator c10::ArrayRef<const at::Tensor*>() const { return pointers_; }

  std::vector<at::Tensor> copy() const {
    std::vector<at::Tensor> tensors;
    tensors.reserve(pointers_.size());
    for (const at::Tensor* tensor : pointers_) tensors.push_back(*tensor);
    return tensors;
  }

 private:
  static constexpr size_t kCacheLine = 64;
  py::object owner_;
  std::vector<const at::Tensor*> pointers_;
};

std::optional<at::Tensor> counter_of(py::handle object, const char* argument) {
  if (object.is_none()) return std::nullopt;
  return tensor_of(object, argument);
}

// Whether the dispatcher must see the call: a mode is active (tracing, fake tensors), or a tensor is more than its data.
bool needs_dispatcher(c10::ArrayRef<const at::Tensor*> tensors, const at::Tensor& flat) {
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return true;
  // Not DispatchKey::Meta: as a set it holds the bit of every dense tensor.
  constexpr c10::DispatchKeySet special({c10::DispatchKey::Python, c10::DispatchKey::Functionalize, c10::DispatchKey::FuncTorchGradWrapper,
                                         c10::DispatchKey::FuncTorchBatched});
  const auto is_special = [&](const at::Tensor* tensor) { return tensor->key_set().has_any(special) || tensor->is_meta(); };
  return is_special(&flat) || std::any_of(tensors.begin(), tensors.end(), is_special);
}

// The interpreter is let go while the CPU computes; for a launch on a GPU that would take longer than the call.
std::optional<py::gil_scoped_release> without_interpreter(const at::Tensor& flat) {
  return flat.is_cpu() ? std::optional<py::gil_scoped_release>(std::in_place) : std::nullopt;
}

template <typename Signature>
auto operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void pack(const py::sequence& sequence, py::handle out, double scale, py::handle nonfinite_counter) {
  const Borrowed tensors(sequence);
  const at::Tensor flat = tensor_of(out, "out");
  const std::optional<at::Tensor> nonfinite = counter_of(nonfinite_counter, "nonfinite");
  if (gpualloc::has_kernels(flat.device().type()) && !needs_dispatcher(tensors, flat)) {
    const gpualloc::Segments segments = gpualloc::segments_of(tensors, flat);
    const auto no_gil = without_interpreter(flat);
    return gpualloc::pack(segments, flat, scale, {nonfinite, {}, {}});
  }
  const std::vector<at::Tensor> owned = tensors.copy();
  const py::gil_scoped_release no_gil;
  static const auto dispatched = operation<void(at::TensorList, const at::Tensor&, double, const std::optional<at::Tensor>&)>("gpualloc::pack");
  dispatched.call(owned, flat, scale, nonfinite);
}

void unpack(py::handle wire, const py::sequence& sequence, double scale, py::handle sumsq_counter, py::handle nonfinite_counter) {
  const Borrowed tensors(sequence);
  const at::Tensor flat = tensor_of(wire, "flat");
  const std::optional<at::Tensor> sumsq = counter_of(sumsq_counter, "sumsq"), nonfinite = counter_of(nonfinite_counter, "nonfinite");
  if (gpualloc::has_kernels(flat.device().type()) && !needs_dispatcher(tensors, flat)) {
    const gpualloc::Segments segments = gpualloc::segments_of(tensors, flat);
    const auto no_gil = without_interpreter(flat);
    return gpualloc::unpack(flat, segments, scale, {nonfinite, sumsq, {}});
  }
  const std::vector<at::Tensor> owned = tensors.copy();
  const py::gil_scoped_release no_gil;
  static const auto dispatched = operation<void(const at::Tensor&, at::TensorList, double, const std::optional<at::Tensor>&,
                                                const std::optional<at::Tensor>&)>("gpualloc::unpack");
  dispatched.call(flat, owned, scale, sumsq, nonfinite);
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
  gpualloc::bind_rehearsal(module);
}
