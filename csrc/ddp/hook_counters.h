// What the hook counts on each device from step to step, and the wire scale that follows it: the tensors behind a shipment's Counters.
// Nothing here waits for the device but what says so.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "ddp/shipment.h"

namespace gpualloc {

class HookCounters {
 public:
  using Future = c10::intrusive_ptr<c10::ivalue::Future>;
  // Starts target [n] = the maximum of source [n] over the ranks.
  using StartAgreement = std::function<Future(const at::Tensor& source, const at::Tensor& target)>;

  // `follows_scale`: FP16 wires have a scale that follows the gradients.
  HookCounters(int world_size, bool follows_scale, bool sum_squares)
      : world_size_(world_size), follows_scale_(follows_scale), sum_squares_(sum_squares) {}

  // A step: begin_step, count and note_fp32 for what it sends, end_step; then finish_step, once all that it sent has arrived.
  void begin_step(int64_t step);  // from 1 on
  // Tells the shipment where its results are counted and what its wire is scaled with.
  void count(Shipment& shipment);
  // A buffer sent in FP32, for the scale of narrow steps to come.
  void note_fp32(const at::Tensor& buffer);
  // Starts to agree on the largest gradient and on whether one was cut, over all ranks.
  void end_step(const StartAgreement& start);
  void finish_step();  // throws what made the agreement fail
  // The same where the agreement, which it waits for, was reached; what made it fail is for the next step to tell.
  void finish_last_step();

  bool follows_scale() const { return follows_scale_; }
  bool scale_known() const { return scaled_steps_ > 0 || first_scale_.has_value(); }
  // Forgets everything and goes on after `step` steps, from `scale` where it is known.
  void load(int64_t step, std::optional<double> scale);

  // Since load(). These three wait for the device.
  int64_t nonfinite_steps() const;
  int64_t saturated_steps() const;
  double scale() const;  // of the next step, where it is followed

  // [3] FP64 on the device: non-finite and saturated steps, added to those given, and the scale of the last step, where it is not
  // followed the fixed one or else what load() brought; undefined: nothing was counted yet.
  at::Tensor glance(int64_t nonfinite_steps, int64_t saturated_steps, std::optional<double> fixed_scale) const;

  // Of the last step: [] int64 non-finite gradients of each device; [] FP64 sums of squares, together those of all devices.
  std::vector<at::Tensor> last_nonfinite() const;
  std::vector<at::Tensor> last_sumsq() const;

 private:
  struct Device {
    at::Tensor nonfinite;                  // [kSlots] int64 non-finite results, one slot a step
    at::Tensor saturated;                  // [] int64 steps in which the wire scale was too large
    at::Tensor sumsq;                      // FP64 of the running step, one for each slice of a transfer, where squares are summed
    int64_t sumsq_used = 0;
    std::optional<at::Tensor> wire_state;  // [8] a WireState, where the scale is followed
    at::Tensor agreed;                     // [2] of the step that ends
    Future agreement;                      // null: none under way
    bool narrowed = false;                 // in this step, with the wire scale
  };

  Device& on(c10::Device device);
  at::Tensor sumsq_for(Device& device, int slices);
  at::Tensor nonfinite_slots() const;
  void finish_agreement(Device& device);

  const int world_size_;
  const bool follows_scale_, sum_squares_;
  std::vector<Device> devices_;
  int64_t slot_ = 0;                   // of the running step
  at::Tensor folded_steps_;            // [] steps with a non-finite result, before those in the slots
  std::vector<at::Tensor> outgrown_sumsq_;
  std::optional<double> first_scale_;  // that load() brought
  int64_t scaled_steps_ = 0;           // that have told the wire scale something
};

}  // namespace gpualloc
