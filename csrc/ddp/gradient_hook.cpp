#include "ddp/gradient_hook.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "ops.h"

namespace gpualloc {
namespace {

// Steps counted apart before the device adds them up: a step has non-finite results once, in however many buckets they are.
constexpr int64_t kSlots = 64;

int64_t bytes_of(const at::Tensor& buffer) {
  if (!buffer.is_sparse()) return static_cast<int64_t>(buffer.nbytes());
  return static_cast<int64_t>(buffer._values().nbytes() + buffer._indices().nbytes());
}

// Only FP32 loses nothing its user asked for. DDP hands a complex gradient over as pairs of FP32.
bool is_narrowed(const c10d::GradBucket& bucket) {
  const at::Tensor& buffer = bucket.getBuffer();
  return !buffer.is_sparse() && buffer.scalar_type() == at::kFloat && !bucket.getParameters().front().is_complex();
}

}  // namespace

GradientHookState::GradientHookState(c10::intrusive_ptr<c10d::ProcessGroup> group, Wire wire, bool sum_squares, bool dynamic_scale)
    : group_(std::move(group)), wire_(wire), sum_squares_(sum_squares), dynamic_scale_(dynamic_scale) {}

c10::intrusive_ptr<c10::ivalue::Future> GradientHookState::run(c10d::GradBucket& bucket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bucket.getIndex() == 0) begin_step();
  ++totals_.buckets;
  if (bucket.isLast()) sumsq_.resize(std::min(sumsq_.size(), bucket.getIndex() + 1));  // the buckets may have been rebuilt
  if (wire_ == Wire::fp32 || !is_narrowed(bucket)) return average_uncompressed(bucket);

  const at::Tensor buffer = bucket.getBuffer();
  const at::Tensor wire = wire_for(bucket.getIndex(), buffer);
  const Device& device = on(buffer.device());
  Counters counters{device.nonfinite.narrow(0, slot(), 1), {}, device.wire_state};
  if (sum_squares_) counters.sumsq = sumsq_for(bucket.getIndex(), buffer.device());
  pack(buffer, wire, 1.0 / group_->getSize(), {{}, {}, device.wire_state});
  totals_.wire_bytes += bytes_of(wire);
  std::vector<at::Tensor> tensors{wire};
  // The callback's current stream is one that already waits for the all-reduce; the tensors it uses outlive the step
  // (the reducer holds the bucket, this state the rest), and the reducer waits for the returned future before it ends.
  return group_->allreduce(tensors)->getFuture()->then(
      [buffer, wire, counters](c10::ivalue::Future& done) -> c10::IValue {
        done.value();  // throws what made the all-reduce fail
        unpack(wire, buffer, 1.0, counters);
        return buffer;
      },
      c10::TensorType::get());
}

c10::intrusive_ptr<c10::ivalue::Future> GradientHookState::average_uncompressed(c10d::GradBucket& bucket) {
  at::Tensor& buffer = bucket.getBufferRef();
  buffer.mul_(1.0 / group_->getSize());  // as DDP does without a hook, so that the results are equal bit for bit
  totals_.wire_bytes += bytes_of(buffer);
  c10d::AllreduceOptions options;
  if (bucket.getSparseGradIndices().has_value()) options.sparseIndices = bucket.getSparseGradIndices();
  std::vector<at::Tensor> tensors{buffer};
  return group_->allreduce(tensors, options)->getFuture();
}

void GradientHookState::begin_step() {
  // The reducer waited for all buckets of the last step, so what they counted is whole.
  for (Device& device : devices_) {
    if (device.wire_state.has_value()) update_wire_state(*device.wire_state, device.nonfinite.narrow(0, slot(), 1));
  }
  ++totals_.steps;
  if (slot() != 0 || devices_.empty()) return;
  const at::Tensor steps = nonfinite_steps();  // every slot has been used: add them up before they are used again
  folded_steps_ = folded_steps_.defined() ? folded_steps_.add_(steps) : steps;
  for (Device& device : devices_) device.nonfinite.zero_();
}

at::Tensor GradientHookState::nonfinite_steps() const {
  at::Tensor any = devices_.front().nonfinite.ne(0);
  for (const Device& device : devices_) any.logical_or_(device.nonfinite.ne(0).to(any.device()));
  return any.sum();
}

HookTotals GradientHookState::totals() {
  const std::lock_guard<std::mutex> lock(mutex_);
  HookTotals now = totals_;
  if (folded_steps_.defined()) now.nonfinite_steps += folded_steps_.item<int64_t>();
  if (!devices_.empty()) now.nonfinite_steps += nonfinite_steps().item<int64_t>();
  return now;
}

double GradientHookState::wire_scale() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (devices_.empty() || !devices_.front().wire_state.has_value()) return first_scale_;
  const Device& device = devices_.front();
  const at::Tensor next = device.wire_state->clone();  // what the next step would make of this one
  update_wire_state(next, device.nonfinite.narrow(0, slot(), 1));
  return next.select(0, 0).item<double>();
}

void GradientHookState::load(const HookTotals& totals, double wire_scale) {
  const std::lock_guard<std::mutex> lock(mutex_);
  totals_ = totals;
  folded_steps_ = at::Tensor();
  first_scale_ = wire_scale;
  devices_.clear();
}

at::Tensor GradientHookState::wire_for(size_t bucket, const at::Tensor& buffer) {
  if (wires_.size() <= bucket) wires_.resize(bucket + 1);
  at::Tensor& wire = wires_[bucket];
  if (!wire.defined() || wire.numel() != buffer.numel() || wire.device() != buffer.device()) {
    wire = at::empty({buffer.numel()}, buffer.options().dtype(wire_ == Wire::fp16 ? at::kHalf : at::kBFloat16));
  }
  return wire;
}

int64_t GradientHookState::slot() const { return (totals_.steps - 1) % kSlots; }

std::vector<at::Tensor> GradientHookState::last_nonfinite() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<at::Tensor> counts;
  if (totals_.steps == 0) return counts;
  for (const Device& device : devices_) counts.push_back(device.nonfinite.select(0, slot()).clone());
  return counts;
}

std::vector<at::Tensor> GradientHookState::last_sumsq() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<at::Tensor> sums;
  for (const at::Tensor& sum : sumsq_) {
    if (sum.defined()) sums.push_back(sum.select(0, 0));
  }
  return sums;
}

at::Tensor GradientHookState::sumsq_for(size_t bucket, at::Device device) {
  if (sumsq_.size() <= bucket) sumsq_.resize(bucket + 1);
  at::Tensor& sumsq = sumsq_[bucket];
  if (!sumsq.defined() || sumsq.device() != device) {
    sumsq = at::zeros({1}, at::TensorOptions().dtype(at::kDouble).device(device));
  } else {
    sumsq.zero_();
  }
  return sumsq;
}

GradientHookState::Device& GradientHookState::on(at::Device device) {
  for (Device& known : devices_) {
    if (known.nonfinite.device() == device) return known;
  }
  Device fresh{at::zeros({kSlots}, at::TensorOptions().dtype(at::kLong).device(device)), {}};
  if (dynamic_scale_) fresh.wire_state = make_wire_state(device, static_cast<float>(first_scale_));
  devices_.push_back(std::move(fresh));
  return devices_.back();
}

}  // namespace gpualloc
