// The virtual process group in gpualloc._C; gpualloc.rehearsal is its public side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "rehearsal/virtual_group.h"

namespace py = pybind11;

namespace gpualloc {

void bind_rehearsal(py::module_& module) {
  using Points = std::vector<std::tuple<double, double, double, double, double>>;  // bytes, latency_s, transfer_s, demand, cpu_s

  module.def(
      "make_virtual_group",
      [](int rank, int size, const std::string& stands_for, const std::map<std::string, Points>& costs, bool uses_network,
         const std::vector<bool>& peer_on_network, int max_in_flight) {
        rehearsal::GroupOptions options;
        options.stands_for = stands_for;
        for (const auto& [name, points] : costs) {
          std::vector<rehearsal::CostPoint> table;
          for (const auto& [bytes, latency_s, transfer_s, demand, cpu_s] : points) table.push_back({bytes, {latency_s, transfer_s, demand, cpu_s}});
          options.costs.emplace(name, rehearsal::CostTable(std::move(table)));
        }
        options.link = uses_network ? rehearsal::kNetworkLink : rehearsal::kNodeLink;
        options.peer_on_network = peer_on_network;
        options.max_in_flight = max_in_flight;
        return c10::intrusive_ptr<c10d::Backend>(c10::make_intrusive<rehearsal::VirtualGroup>(rank, size, std::move(options)));
      },
      py::kw_only(), py::arg("rank"), py::arg("size"), py::arg("stands_for"), py::arg("costs"), py::arg("uses_network"),
      py::arg("peer_on_network"), py::arg("max_in_flight"));

  module.def("set_links_take_time", [](bool take_time) { rehearsal::links_take_time = take_time; }, py::arg("take_time"));
  module.def("rehearsal_totals", [] {
    const rehearsal::Totals totals = rehearsal::totals();
    return py::make_tuple(totals.operations, totals.bytes, totals.modelled_s);
  });
}

}  // namespace gpualloc
