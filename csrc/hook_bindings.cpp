// The communication hook in gpualloc._C; gpualloc.comm is its public side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <torch/csrc/utils/pybind.h>

#include "ddp/gradient_hook.h"

namespace py = pybind11;

namespace gpualloc {
namespace {

// A Python function that makes process groups, called from the thread of the backward pass, which has not got the interpreter.
std::function<std::vector<Group>(int)> lane_maker(py::object make) {
  if (make.is_none()) return {};
  const auto free_with_interpreter = [](py::object* function) {
    const py::gil_scoped_acquire gil;
    delete function;
  };
  const std::shared_ptr<py::object> shared(new py::object(std::move(make)), free_with_interpreter);
  return [shared](int count) {
    const py::gil_scoped_acquire gil;
    std::vector<Group> groups;
    for (const py::handle group : (*shared)(count)) {
      groups.push_back(Group::unsafe_reclaim_from_nonowning(&group.cast<c10d::ProcessGroup&>()));
    }
    return groups;
  };
}

std::shared_ptr<GradientHookState> register_gradient_hook(const std::shared_ptr<c10d::Reducer>& reducer, c10d::ProcessGroup& group,
                                                          const std::optional<std::string>& wire, bool allow_int8, int max_lanes, py::object make_lanes,
                                                          const std::optional<double>& scale, std::optional<bool> sum_in_fp32,
                                                          std::optional<bool> feedback, bool sum_squares) {
  HookOptions options;
  if (wire.has_value()) options.wire = parse_wire(*wire);
  options.allow_int8 = allow_int8;
  options.max_lanes = max_lanes;
  options.make_lanes = lane_maker(std::move(make_lanes));
  options.dynamic_scale = !scale.has_value();
  options.scale = scale.value_or(1);
  options.sum_in_fp32 = sum_in_fp32;
  options.feedback = feedback;
  options.sum_squares = sum_squares;
  // By reference and not by holder: torch registers process groups with a holder type of its own.
  auto shared_group = c10::intrusive_ptr<c10d::ProcessGroup>::unsafe_reclaim_from_nonowning(&group);
  // The state may be its group's last owner, and a group's end waits for threads that may want the interpreter.
  const auto free_without_interpreter = [](GradientHookState* state) {
    if (PyGILState_Check() == 0) return delete state;
    const py::gil_scoped_release no_gil;
    delete state;
  };
  const std::shared_ptr<GradientHookState> state(new GradientHookState(std::move(shared_group), options), free_without_interpreter);
  reducer->register_comm_hook(std::make_unique<GradientHook>(state));
  return state;
}

py::list plan_to_python(const Plan& plan) {
  py::list transfers;
  for (const Transfer& transfer : plan) transfers.append(py::make_tuple(transfer.first, transfer.last, name_of(transfer.wire), transfer.slices, transfer.lanes));
  return transfers;
}

py::list buckets_to_python(const Buckets& buckets) {
  py::list shapes;
  for (const BucketShape& bucket : buckets) shapes.append(py::make_tuple(bucket.numel, bucket.narrowable, bucket.device));
  return shapes;
}

Plan plan_from_python(const std::vector<std::tuple<int, int, std::string, int, int>>& transfers) {
  Plan plan;
  for (const auto& [first, last, wire, slices, lanes] : transfers) plan.push_back({first, last, parse_wire(wire), slices, lanes});
  return plan;
}

Buckets buckets_from_python(const std::vector<std::tuple<int64_t, bool, int>>& shapes) {
  Buckets buckets;
  for (const auto& [numel, narrowable, device] : shapes) buckets.push_back({numel, narrowable, device});
  return buckets;
}

void check_plan(const Plan& plan, const Buckets& buckets) {
  int next = 0;
  for (const Transfer& transfer : plan) {
    TORCH_CHECK_VALUE(transfer.first == next && transfer.last >= transfer.first && transfer.slices >= 1 && transfer.lanes >= 1,
                      "plan: expected transfers of consecutive buckets, got one of buckets ", transfer.first, " to ", transfer.last,
                      " after bucket ", next - 1);
    next = transfer.last + 1;
  }
  TORCH_CHECK_VALUE(next == static_cast<int>(buckets.size()), "plan: expected to cover ", buckets.size(), " buckets, got ", next);
}

py::dict memory_to_python(const HookMemory& memory) {
  py::dict result;
  result["steps"] = memory.totals.steps;
  result["transfers"] = memory.totals.transfers;
  result["wire_bytes"] = memory.totals.wire_bytes;
  result["nonfinite_steps"] = memory.totals.nonfinite_steps;
  result["saturated_steps"] = memory.totals.saturated_steps;
  result["wire_scale"] = memory.scale;
  result["plan"] = plan_to_python(memory.plan);
  result["buckets"] = buckets_to_python(memory.buckets);
  result["feedback"] = memory.feedback;
  return result;
}

void load(GradientHookState& state, const HookTotals& totals, std::optional<double> scale,
          const std::vector<std::tuple<int, int, std::string, int, int>>& plan, const std::vector<std::tuple<int64_t, bool, int>>& buckets,
          std::vector<at::Tensor> feedback) {
  HookMemory memory{totals, scale, plan_from_python(plan), buckets_from_python(buckets), std::move(feedback)};
  check_plan(memory.plan, memory.buckets);
  const py::gil_scoped_release no_gil;
  state.load(std::move(memory));
}

// What the controller knows, for gpualloc.comm.explain.
py::object decisions(GradientHookState& state) {
  const auto lock = [&] {
    const py::gil_scoped_release no_gil;  // the hook holds it while it waits for other ranks
    return state.lock();
  }();
  Controller* const controller = state.controller();
  if (controller == nullptr) return py::none();
  py::dict result;
  result["decided"] = controller->decided();
  result["frozen"] = controller->frozen();
  result["num_decisions"] = controller->decisions();
  result["buckets"] = buckets_to_python(controller->buckets());
  result["plan"] = plan_to_python(controller->plan());
  result["ready_s"] = controller->figures().ready_s;
  py::dict links;
  for (int wire = 0; wire < kNumWires; ++wire) {
    const LinkModel& link = controller->figures().links[static_cast<size_t>(wire)];
    if (link.bytes_per_s > 0) links[name_of(static_cast<Wire>(wire))] = py::make_tuple(link.latency_s, link.bytes_per_s);
  }
  result["links"] = links;
  result["max_lanes"] = controller->max_lanes();
  py::dict lane_links;
  for (int wire = 0; wire < kNumWires; ++wire) {
    const LinkModel& link = controller->lane_figures().links[static_cast<size_t>(wire)];
    if (link.bytes_per_s > 0) lane_links[name_of(static_cast<Wire>(wire))] = py::make_tuple(link.latency_s, link.bytes_per_s);
  }
  result["lane_links"] = lane_links;
  py::list candidates;
  for (const Controller::Candidate& candidate : controller->candidates()) {
    candidates.append(py::make_tuple(candidate.name, plan_to_python(candidate.plan), candidate.step_s));
  }
  result["candidates"] = candidates;
  result["chosen"] = controller->decided() ? controller->chosen() : -1;
  return result;
}

void freeze(GradientHookState& state, bool frozen) {
  const auto lock = [&] {
    const py::gil_scoped_release no_gil;
    return state.lock();
  }();
  if (state.controller() != nullptr) state.controller()->freeze(frozen);
}

}  // namespace

void bind_hook(py::module_& module) {
  py::class_<HookTotals>(module, "HookTotals")
      .def(py::init([](int64_t steps, int64_t transfers, int64_t wire_bytes, int64_t nonfinite_steps, int64_t saturated_steps) {
             return HookTotals{steps, transfers, wire_bytes, nonfinite_steps, saturated_steps};
           }),
           py::kw_only(), py::arg("steps"), py::arg("transfers"), py::arg("wire_bytes"), py::arg("nonfinite_steps"),
           py::arg("saturated_steps"))
      .def_readonly("steps", &HookTotals::steps)
      .def_readonly("transfers", &HookTotals::transfers)
      .def_readonly("wire_bytes", &HookTotals::wire_bytes)
      .def_readonly("nonfinite_steps", &HookTotals::nonfinite_steps)
      .def_readonly("saturated_steps", &HookTotals::saturated_steps);

  py::class_<StepTimes>(module, "StepTimes")
      .def_readonly("period_s", &StepTimes::period)
      .def_readonly("comm_s", &StepTimes::comm)
      .def_readonly("exposed_s", &StepTimes::exposed)
      .def_property_readonly("hidden_s", &StepTimes::hidden)
      .def_readonly("ready_s", &StepTimes::ready)
      .def_readonly("transfer_s", &StepTimes::transfer);

  py::class_<HookGlance>(module, "HookGlance")
      .def_readonly("counted", &HookGlance::counted)
      .def_property_readonly("counters", [](const HookGlance& glance) { return glance.counters.defined() ? std::optional(glance.counters) : std::nullopt; })
      .def_readonly("times", &HookGlance::times)
      .def_readonly("timed_step", &HookGlance::timed_step);

  const auto waits = py::call_guard<py::gil_scoped_release>();
  py::class_<GradientHookState, std::shared_ptr<GradientHookState>>(module, "GradientHookState")
      .def("totals", &GradientHookState::totals, waits)
      .def("wire_scale", &GradientHookState::wire_scale, waits)
      .def("times", &GradientHookState::times, waits)
      .def("steps", &GradientHookState::steps, waits)
      .def("glance", &GradientHookState::glance, waits)
      .def("memory",
           [](GradientHookState& state) {
             const HookMemory memory = [&] {
               const py::gil_scoped_release no_gil;
               return state.memory();
             }();
             return memory_to_python(memory);
           })
      .def("load", &load, py::arg("totals"), py::kw_only(), py::arg("wire_scale"), py::arg("plan"), py::arg("buckets"), py::arg("feedback"))
      .def("last_nonfinite", &GradientHookState::last_nonfinite, waits)
      .def("last_sumsq", &GradientHookState::last_sumsq, waits)
      .def("last_uncounted", &GradientHookState::last_uncounted, waits)
      .def("decisions", &decisions)
      .def("freeze", &freeze, py::arg("frozen"));

  module.def("register_gradient_hook", &register_gradient_hook, py::arg("reducer"), py::arg("process_group"), py::kw_only(), py::arg("wire"),
             py::arg("allow_int8"), py::arg("max_lanes"), py::arg("make_lanes"), py::arg("scale"), py::arg("sum_in_fp32"), py::arg("feedback"), py::arg("sum_squares"));
}

}  // namespace gpualloc
