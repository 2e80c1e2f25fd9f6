#include "ddp/gradient_hook.h"

#include <ATen/ATen.h>

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

GradientHookState::GradientHookState(c10::intrusive_ptr<c10d::ProcessGroup> group, Wire wire) : group_(std::move(group)), wire_(wire) {}

c10::intrusive_ptr<c10::ivalue::Future> GradientHookState::run(c10d::GradBucket& bucket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bucket.getIndex() == 0) begin_step();
  ++totals_.buckets;
  if (wire_ == Wire::fp32 || !is_narrowed(bucket)) return average_uncompressed(bucket);

  const at::Tensor buffer = bucket.getBuffer();
  const at::Tensor wire = wire_for(bucket.getIndex(), buffer);
  const at::Tensor nonfinite = nonfinite_slot(buffer.device());
  pack(buffer, wire, 1.0 / group_->getSize(), std::nullopt);
  totals_.wire_bytes += bytes_of(wire);
  std::vector<at::Tensor> tensors{wire};
  // The callback's current stream is one that already waits for the all-reduce; the tensors it uses outlive the step
  // (the reducer holds the bucket, this state the rest), and the reducer waits for the returned future before it ends.
  return group_->allreduce(tensors)->getFuture()->then(
      [buffer, wire, nonfinite](c10::ivalue::Future& done) -> c10::IValue {
        done.value();  // throws what made the all-reduce fail
        unpack(wire, buffer, 1.0, std::nullopt, nonfinite);
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
  // Every slot has been used: the reducer waited for all buckets of the last step, so the counts are whole.
  if (totals_.steps > 0 && totals_.steps % kSlots == 0) fold_nonfinite();
  ++totals_.steps;
}

void GradientHookState::fold_nonfinite() {
  if (nonfinite_.empty()) return;
  at::Tensor any = nonfinite_.front().ne(0);
  for (const at::Tensor& counts : nonfinite_) any.logical_or_(counts.ne(0).to(any.device()));
  for (at::Tensor& counts : nonfinite_) counts.zero_();
  const at::Tensor steps = any.sum();
  folded_steps_ = folded_steps_.defined() ? folded_steps_.add_(steps) : steps;
}

HookTotals GradientHookState::totals() {
  const std::lock_guard<std::mutex> lock(mutex_);
  fold_nonfinite();
  HookTotals now = totals_;
  if (folded_steps_.defined()) now.nonfinite_steps += folded_steps_.item<int64_t>();
  return now;
}

void GradientHookState::load(const HookTotals& totals) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fold_nonfinite();
  folded_steps_ = at::Tensor();
  totals_ = totals;
}

at::Tensor GradientHookState::wire_for(size_t bucket, const at::Tensor& buffer) {
  if (wires_.size() <= bucket) wires_.resize(bucket + 1);
  at::Tensor& wire = wires_[bucket];
  if (!wire.defined() || wire.numel() != buffer.numel() || wire.device() != buffer.device()) {
    wire = at::empty({buffer.numel()}, buffer.options().dtype(wire_ == Wire::fp16 ? at::kHalf : at::kBFloat16));
  }
  return wire;
}

at::Tensor GradientHookState::nonfinite_slot(at::Device device) {
  const int64_t slot = (totals_.steps - 1) % kSlots;
  for (const at::Tensor& counts : nonfinite_) {
    if (counts.device() == device) return counts.narrow(0, slot, 1);
  }
  nonfinite_.push_back(at::zeros({kSlots}, at::TensorOptions().dtype(at::kLong).device(device)));
  return nonfinite_.back().narrow(0, slot, 1);
}

}  // namespace gpualloc
