// The communication hook that gpualloc.register_comm_hook attaches to DDP's reducer.
//
//   wire = narrow(float(bucket) / world_size * s);  sum over the ranks;  bucket = widen(wire) / s, counting inf and NaN
//
// The wire scale s follows the gradients (wire_scale.h) or is fixed. Only FP32 buckets are narrowed. FP64, complex, 16-bit and sparse
// buckets are averaged in their own type. Which buckets travel together and as what is the plan's business (plan.h, controller.h),
// how they travel the carrier's (shipment.h), what is counted on the way hook_counters.h.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "ddp/collective_carrier.h"
#include "ddp/controller.h"
#include "ddp/hook_counters.h"
#include "ddp/shipment.h"

namespace gpualloc {

struct HookOptions {
  std::optional<Wire> wire;   // absent: chosen by the controller
  bool allow_int8 = false;    // by the controller
  int max_lanes = 1;          // process groups that the controller may use side by side
  std::function<std::vector<Group>(int)> make_lanes;  // so many further groups of the same ranks; fewer: there are none
  bool dynamic_scale = true;  // of FP16
  double scale = 1;           // of FP16 where not dynamic, a power of two
  std::optional<bool> sum_in_fp32;  // absent: where it costs nothing, which is gloo
  std::optional<bool> feedback;     // absent: for int8
  bool sum_squares = false;
};

// Totals since registration, or since the run that load() continues.
struct HookTotals {
  int64_t steps = 0;       // synchronised backward passes
  int64_t transfers = 0;   // collectives
  int64_t wire_bytes = 0;  // gradient bytes this rank handed to them
  int64_t nonfinite_steps = 0;
  int64_t saturated_steps = 0;
};

// What is known without waiting for the device or for other ranks.
struct HookGlance {
  HookTotals counted;  // on the host: non-finite and saturated steps are only those that load() brought
  at::Tensor counters;  // [3] FP64 on the device: non-finite steps, saturated steps, the last step's wire scale; undefined: none yet
  std::optional<StepTimes> times;  // of the last timed step, if the device has come that far
  int64_t timed_step = 0;          // which one that was
};

// What load() takes up again.
struct HookMemory {
  HookTotals totals;
  std::optional<double> scale;  // absent: not known yet
  Plan plan;
  Buckets buckets;
  std::vector<at::Tensor> feedback;
};

// Owned by the hook inside the reducer and by the Python handle.
class GradientHookState {
 public:
  GradientHookState(Group group, HookOptions options);

  // Takes the bucket; the future holds its average. Called by the reducer, one bucket at a time, bucket 0 first in every step.
  c10::intrusive_ptr<c10::ivalue::Future> run(c10d::GradBucket& bucket);

  int64_t steps();
  HookGlance glance();

  // All below wait for the device where it must be read, so not for every step.
  HookTotals totals();
  double wire_scale();  // of the next step
  std::optional<StepTimes> times();  // of the last step that was timed
  HookMemory memory();
  void load(HookMemory memory);

  // Of the last step, without waiting: [] int64 non-finite gradients on each device that counts some; [] FP64 sum of squares on each
  // device, where squares are summed; and the buckets whose non-finite gradients were not counted.
  std::vector<at::Tensor> last_nonfinite();
  std::vector<at::Tensor> last_sumsq();
  std::vector<at::Tensor> last_uncounted();

  // Null for a fixed wire. Held under lock() while it is read.
  Controller* controller() { return controller_.get(); }
  std::unique_lock<std::mutex> lock() { return std::unique_lock<std::mutex>(mutex_); }

 private:
  using Future = c10::intrusive_ptr<c10::ivalue::Future>;

  struct Pending {
    at::Tensor buffer;
    Future future;
    at::Tensor residual;
  };

  void begin_step(c10::Device device);
  const Plan& plan() const;
  bool times_transfers() const { return stamps_ != nullptr && stamps_->has_transfers(); }
  BucketShape shape_of(const c10d::GradBucket& bucket) const;
  Transfer transfer_of(const BucketShape& shape);
  void dispatch(const Transfer& transfer);
  Future average_alone(c10d::GradBucket& bucket);
  void note_fp32(const at::Tensor& buffer);
  bool make_lanes(int count);
  std::vector<double> agree_max(std::vector<double> values, c10::Device device);
  at::Tensor residual_for(const BucketShape& shape, const Transfer& transfer, c10::Device device);
  Carrier& carrier(c10::Device device);

  const Group group_;
  std::vector<Group> lanes_;  // group_ and further ones of the same ranks
  const HookOptions options_;
  const double average_;  // 1 / world size
  std::mutex mutex_;
  HookCounters counters_;
  std::unique_ptr<Controller> controller_;
  std::unique_ptr<Carrier> carrier_;
  HookTotals totals_;  // non-finite and saturated: only those that load() brought

  // Of the running step.
  Buckets seen_, planned_;
  Plan fixed_plan_;
  Wire pending_wire_ = Wire::fp32;
  bool on_plan_ = true;
  size_t transfer_index_ = 0;
  std::vector<Pending> pending_;
  std::shared_ptr<StepStamps> stamps_, last_stamps_;
  int64_t last_timed_step_ = 0;
  std::vector<c10::weak_intrusive_ptr<c10::TensorImpl>> uncounted_;
  at::Tensor residuals_;  // [all elements] FP32
  int64_t residual_begin_ = 0;
  Plan carried_plan_;  // whose owner errors the carrier holds
  std::vector<at::Tensor> loaded_feedback_;
};

// The reducer's side of it.
class GradientHook : public c10d::CppCommHookInterface<std::shared_ptr<GradientHookState>> {
 public:
  using CppCommHookInterface::CppCommHookInterface;
  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override { return state_->run(bucket); }
};

}  // namespace gpualloc
