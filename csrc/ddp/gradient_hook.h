// The communication hook that gpualloc.register_comm_hook attaches to DDP's reducer.
//
// Per bucket:  wire = narrow(float(bucket) / world_size * s);  all-reduce(wire);  bucket = widen(wire) / s, counting inf and NaN
// The wire scale s is 1, or a power of two that follows the gradients (wire_scale.h).
// Only FP32 buckets are narrowed. FP64, complex, 16-bit and sparse buckets are averaged in their own type.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace gpualloc {

enum class Wire { fp32, fp16, bf16 };

// Totals since registration, or since the run that load() continues.
struct HookTotals {
  int64_t steps = 0;       // synchronised backward passes
  int64_t buckets = 0;     // all-reduces
  int64_t wire_bytes = 0;  // gradient bytes this rank handed to all-reduce
  int64_t nonfinite_steps = 0;
};

// Owned by the hook inside the reducer and by the Python handle.
class GradientHookState {
 public:
  // `sum_squares`: unpack also sums the squares of the averaged gradients, for last_sumsq().
  // `dynamic_scale`: the wire scale follows the gradients.
  GradientHookState(c10::intrusive_ptr<c10d::ProcessGroup> group, Wire wire, bool sum_squares, bool dynamic_scale);

  // Starts the bucket's all-reduce on the current stream; the future holds the averaged bucket. Called by the reducer,
  // one bucket at a time, bucket 0 first in every step.
  c10::intrusive_ptr<c10::ivalue::Future> run(c10d::GradBucket& bucket);

  // Waits for the device to read the non-finite counts, so not for every step.
  HookTotals totals();
  // The wire scale of the next step; waits as totals() does.
  double wire_scale();
  void load(const HookTotals& totals, double wire_scale);

  // Of the last step's narrowed buckets, without waiting: [] int64 non-finite gradients on each device that has some, and []
  // float64 sum of squares of each bucket.
  std::vector<at::Tensor> last_nonfinite();
  std::vector<at::Tensor> last_sumsq();
  bool counts_nonfinite() const { return wire_ != Wire::fp32; }

 private:
  // What one device counts and follows.
  struct Device {
    at::Tensor nonfinite;                  // [kSlots] int64 non-finite results, one slot a step
    std::optional<at::Tensor> wire_state;  // [4] a WireState, where the scale is dynamic
  };

  void begin_step();
  at::Tensor nonfinite_steps() const;
  int64_t slot() const;
  at::Tensor sumsq_for(size_t bucket, at::Device device);
  at::Tensor wire_for(size_t bucket, const at::Tensor& buffer);
  Device& on(at::Device device);
  c10::intrusive_ptr<c10::ivalue::Future> average_uncompressed(c10d::GradBucket& bucket);

  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const Wire wire_;
  const bool sum_squares_;
  const bool dynamic_scale_;
  std::mutex mutex_;
  HookTotals totals_;                  // nonfinite_steps: only those that load() brought
  std::vector<at::Tensor> wires_;      // one per bucket, kept across steps
  std::vector<at::Tensor> sumsq_;      // one per bucket, [1]: their unpacks may run at the same time; undefined if not narrowed
  std::vector<Device> devices_;
  double first_scale_ = 1;
  at::Tensor folded_steps_;            // [] steps with a non-finite result, before those in the slots
};

// The reducer's side of it.
class GradientHook : public c10d::CppCommHookInterface<std::shared_ptr<GradientHookState>> {
 public:
  using CppCommHookInterface::CppCommHookInterface;
  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override { return state_->run(bucket); }
};

}  // namespace gpualloc
