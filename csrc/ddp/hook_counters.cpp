#include "ddp/hook_counters.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "ops.h"

namespace gpualloc {
namespace {

// Steps counted apart before the device adds them up: a step has non-finite results once, in however many buckets they are.
constexpr int64_t kSlots = 64;

}  // namespace

void HookCounters::begin_step(int64_t step) {
  slot_ = (step - 1) % kSlots;
  if (slot_ == 0 && !devices_.empty()) {
    const at::Tensor steps = nonfinite_slots();  // every slot has been used: add them up before they are used again
    folded_steps_ = folded_steps_.defined() ? folded_steps_.add_(steps) : steps;
    for (Device& one : devices_) one.nonfinite.zero_();
  }
  for (Device& one : devices_) {
    if (one.sumsq.defined()) one.sumsq.zero_();
    one.sumsq_used = 0;
  }
  outgrown_sumsq_.clear();
}

void HookCounters::count(Shipment& shipment) {
  Device& device = on(shipment.device());
  if (shipment.wire == Wire::fp16) {
    shipment.wire_state = device.wire_state;
    device.narrowed |= device.wire_state.has_value();
  }
  if (shipment.wire != Wire::fp32 || sum_squares_) {
    shipment.nonfinite = device.nonfinite.narrow(0, slot_, 1);
    if (sum_squares_) shipment.sumsq = sumsq_for(device, shipment.slices);
  }
}

void HookCounters::note_fp32(const at::Tensor& buffer) {
  Device& device = on(buffer.device());
  const at::Tensor largest = at::linalg_vector_norm(buffer, std::numeric_limits<double>::infinity()).mul_(1.0 / world_size_);
  const at::Tensor absmax = device.wire_state->select(0, 2);
  absmax.copy_(at::maximum(absmax, at::where(largest.isfinite(), largest, 0)));
  device.narrowed = true;
}

void HookCounters::end_step(const StartAgreement& start) {
  for (Device& device : devices_) {
    if (!device.narrowed) continue;
    const at::Tensor seen = device.wire_state->narrow(0, 2, 2);
    device.agreed = at::empty_like(seen);
    if (world_size_ == 1) {
      device.agreed.copy_(seen);
    } else {
      device.agreement = start(seen, device.agreed);
    }
  }
}

void HookCounters::finish_last_step() {
  for (const Device& device : devices_) {
    if (device.agreement == nullptr) continue;
    device.agreement->wait();
    if (device.agreement->hasError()) return;
  }
  finish_step();
}

void HookCounters::finish_step() {
  const bool has_scale_changed = std::any_of(devices_.begin(), devices_.end(), [](const Device& one) { return one.agreed.defined(); });
  for (Device& device : devices_) finish_agreement(device);
  scaled_steps_ += has_scale_changed;
}

void HookCounters::finish_agreement(Device& device) {
  if (!device.agreed.defined()) return;
  if (device.agreement != nullptr) device.agreement->waitAndThrow();
  device.agreement = nullptr;
  update_wire_state(*device.wire_state, device.agreed, device.nonfinite.narrow(0, slot_, 1));
  device.saturated.add_(device.agreed.select(0, 1).to(at::kLong));
  device.agreed = at::Tensor();
  device.narrowed = false;
}

void HookCounters::load(int64_t step, std::optional<double> scale) {
  slot_ = std::max<int64_t>(0, step - 1) % kSlots;
  folded_steps_ = at::Tensor();
  first_scale_ = scale;
  devices_.clear();
}

int64_t HookCounters::nonfinite_steps() const {
  int64_t steps = folded_steps_.defined() ? folded_steps_.item<int64_t>() : 0;
  if (!devices_.empty()) steps += nonfinite_slots().item<int64_t>();
  return steps;
}

int64_t HookCounters::saturated_steps() const {
  int64_t steps = 0;
  for (const Device& device : devices_) steps += device.saturated.item<int64_t>();
  return steps;
}

double HookCounters::scale() const {
  if (devices_.empty() || !devices_.front().wire_state.has_value()) return first_scale_.value_or(1);
  return devices_.front().wire_state->select(0, 0).item<double>();
}

at::Tensor HookCounters::glance(int64_t nonfinite_steps, int64_t saturated_steps, std::optional<double> fixed_scale) const {
  if (devices_.empty()) return {};
  const Device& first = devices_.front();
  at::Tensor nonfinite = nonfinite_slots().add(nonfinite_steps), saturated = first.saturated.add(saturated_steps);
  if (folded_steps_.defined()) nonfinite.add_(folded_steps_);
  for (size_t k = 1; k < devices_.size(); ++k) saturated.add_(devices_[k].saturated.to(saturated.device()));
  const auto doubles = saturated.options().dtype(at::kDouble);
  const double given = fixed_scale.value_or(first_scale_.value_or(1));
  const at::Tensor scale = first.wire_state.has_value() ? first.wire_state->select(0, 0).to(at::kDouble) : at::full({}, given, doubles);
  return at::stack({nonfinite.to(at::kDouble), saturated.to(at::kDouble), scale});
}

std::vector<at::Tensor> HookCounters::last_nonfinite() const {
  std::vector<at::Tensor> counts;
  for (const Device& device : devices_) counts.push_back(device.nonfinite.select(0, slot_).clone());
  return counts;
}

std::vector<at::Tensor> HookCounters::last_sumsq() const {
  std::vector<at::Tensor> sums;
  for (const Device& device : devices_) {
    if (device.sumsq.defined()) sums.push_back(device.sumsq.sum());
  }
  for (const at::Tensor& sumsq : outgrown_sumsq_) sums.push_back(sumsq.sum());
  return sums;
}

HookCounters::Device& HookCounters::on(c10::Device device) {
  for (Device& known : devices_) {
    if (known.nonfinite.device() == device) return known;
  }
  const auto integers = at::TensorOptions().dtype(at::kLong).device(device);
  Device fresh{at::zeros({kSlots}, integers), at::zeros({}, integers), {}, 0, {}, {}, {}, false};
  if (follows_scale_) {
    fresh.wire_state = make_wire_state(device, static_cast<float>(first_scale_.value_or(1)), world_size_, first_scale_.has_value());
  }
  devices_.push_back(std::move(fresh));
  return devices_.back();
}

at::Tensor HookCounters::sumsq_for(Device& device, int slices) {
  const int64_t begin = std::exchange(device.sumsq_used, device.sumsq_used + slices);
  if (!device.sumsq.defined() || device.sumsq.numel() < device.sumsq_used) {
    const at::Tensor larger = at::zeros({std::max<int64_t>(64, 2 * device.sumsq_used)}, device.nonfinite.options().dtype(at::kDouble));
    // Sums of this step may still be written to the smaller one, which is kept until they are.
    if (device.sumsq.defined()) outgrown_sumsq_.push_back(device.sumsq);
    device.sumsq = larger;
  }
  return device.sumsq.narrow(0, begin, slices);
}

at::Tensor HookCounters::nonfinite_slots() const {
  at::Tensor any = devices_.front().nonfinite.ne(0);
  for (const Device& device : devices_) any.logical_or_(device.nonfinite.ne(0).to(any.device()));
  return any.sum();
}

}  // namespace gpualloc
