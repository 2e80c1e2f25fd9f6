// The Python module gpualloc._C: the hook's class and what this build is. The operations register themselves (ops.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <stdexcept>

#include "cpu/convert.h"
#include "ddp/gradient_hook.h"

namespace py = pybind11;

namespace {

gpualloc::Wire parse_wire(const std::string& wire) {
  if (wire == "fp32") return gpualloc::Wire::fp32;
  if (wire == "fp16") return gpualloc::Wire::fp16;
  if (wire == "bf16") return gpualloc::Wire::bf16;
  throw std::invalid_argument("wire: expected fp32, fp16 or bf16, got " + wire);
}

std::shared_ptr<gpualloc::GradientHookState> register_gradient_hook(const std::shared_ptr<c10d::Reducer>& reducer,
                                                                    c10d::ProcessGroup& group, const std::string& wire) {
  // By reference and not by holder: torch registers process groups with a holder type of its own.
  auto shared_group = c10::intrusive_ptr<c10d::ProcessGroup>::unsafe_reclaim_from_nonowning(&group);
  auto state = std::make_shared<gpualloc::GradientHookState>(std::move(shared_group), parse_wire(wire));
  reducer->register_comm_hook(std::make_unique<gpualloc::GradientHook>(state));
  return state;
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
      .def("load", &GradientHookState::load, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("counts_nonfinite", &GradientHookState::counts_nonfinite);

  module.def("register_gradient_hook", &register_gradient_hook, py::arg("reducer"), py::arg("process_group"), py::arg("wire"));
}
