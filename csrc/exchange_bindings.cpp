// The gradient exchange for Python: its tests call gpualloc._C; the hook calls the C++ functions.
#include "exchange_bindings.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "exchange.h"

namespace py = pybind11;

void bind_exchange(py::module_& module) {
  using Optional = std::optional<at::Tensor>;
  const py::call_guard<py::gil_scoped_release> no_gil;
  module.def(
      "shard_numel",
      [](int64_t numel, int64_t world_size) {
        gpualloc::check_numel(numel, "numel");
        gpualloc::check_world_size(world_size);
        return gpualloc::shard_numel(numel, world_size);
      },
      py::arg("numel"), py::arg("world_size"));
  module.def(
      "int8_shard_bytes",
      [](int64_t shard_numel) {
        gpualloc::check_numel(shard_numel, "shard_numel");
        return gpualloc::int8_shard_bytes(shard_numel);
      },
      py::arg("shard_numel"));
  module.def("sum_shards", &gpualloc::sum_shards, py::arg("shards"), py::arg("out"), py::arg("error") = py::none(), no_gil);
  module.def("quantize", &gpualloc::quantize, py::arg("source"), py::arg("wire"), py::arg("world_size"), py::arg("scale"),
             py::arg("residual") = py::none(), no_gil);
  module.def("reduce_int8", &gpualloc::reduce_int8, py::arg("shards"), py::arg("out"), py::arg("world_size"), py::arg("error") = py::none(),
             no_gil);
  module.def(
      "dequantize",
      [](const at::Tensor& wire, const at::Tensor& target, int64_t world_size, const Optional& sumsq, const Optional& nonfinite) {
        gpualloc::dequantize(wire, target, world_size, {nonfinite, sumsq, {}});
      },
      py::arg("wire"), py::arg("target"), py::arg("world_size"), py::arg("sumsq") = py::none(), py::arg("nonfinite") = py::none(), no_gil);
  module.def("pack_with_feedback", &gpualloc::pack_with_feedback, py::arg("source"), py::arg("wire"), py::arg("scale"), py::arg("residual"),
             no_gil);
}
