// One transfer on its way: what it holds, how it is written, where its results are counted, who waits for it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/StreamGuard.h>

#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "ddp/timeline.h"
#include "ops.h"

namespace gpualloc {

struct Shipment {
  std::vector<at::Tensor> buffers;  // [numel] FP32 each, one device; overwritten by their average over the ranks
  std::vector<c10::intrusive_ptr<c10::ivalue::Future>> futures;  // completed with the buffers
  Wire wire = Wire::fp32;
  int slices = 1;  // of a single buffer
  int lanes = 1;   // communicators that slices, and shipments of one piece, take in turn
  int index = 0;                               // of the transfer in its step
  double scale = 1;                            // further factor on the wire, taken back on arrival
  std::vector<at::Tensor> residuals;           // [numel] FP32 for each buffer: what narrowing lost so far; empty: not kept
  std::optional<at::Tensor> wire_state;        // [8] FP32, a WireState
  std::optional<at::Tensor> nonfinite;         // as in Counters
  std::optional<at::Tensor> sumsq;             // [slices] FP64, one sum for each
  std::shared_ptr<StepStamps> stamps;          // null: not timed

  Counters counters(int slice = 0) const {
    return {nonfinite, sumsq.has_value() ? std::optional(sumsq->narrow(0, slice, 1)) : std::nullopt, wire_state};
  }
  c10::Device device() const { return buffers.front().device(); }
  TransferStamps* own_stamps() const { return stamps == nullptr ? nullptr : &stamps->transfers[static_cast<size_t>(index)]; }

  void stamp(Stamp TransferStamps::*which) const {
    if (TransferStamps* const own = own_stamps()) own->*which = Stamp::now(device());
  }

  // On CUDA the futures wait for the current stream.
  void complete() const {
    stamp(&TransferStamps::done);
    for (size_t k = 0; k < buffers.size(); ++k) futures[k]->markCompleted(buffers[k]);
  }
  void fail(const std::exception_ptr& error) const {
    for (const auto& future : futures) future->setErrorIfNeeded(error);
  }
};

// wire [all elements] FP16 or BF16 = narrow(buffers * scale + residuals), the residuals then being what that lost; no residuals: none
// are added or kept. With residuals the buffers may be overwritten: what travels is all that is wanted of them.
void pack_all(const std::vector<at::Tensor>& buffers, const std::vector<at::Tensor>& residuals, const at::Tensor& wire, double scale,
              const std::optional<at::Tensor>& wire_state);

// Averages shipments over the ranks of a process group, in the order in which they come.
class Carrier {
 public:
  virtual ~Carrier() = default;
  virtual void carry(Shipment shipment) = 0;
  // After a step's last shipment: target [n] = the maximum over the ranks of source [n], as narrowing has left it then.
  virtual c10::intrusive_ptr<c10::ivalue::Future> agree_max(const at::Tensor& source, const at::Tensor& target) = 0;
  // Before a step's first shipment; all of the last step's are complete.
  virtual void begin_step() {}

  // The owner's part of error feedback, one FP32 tensor for each exchange of a step; emptied when the plan changes.
  std::vector<at::Tensor>& owner_errors() { return owner_errors_; }

 protected:
  // The error of exchange number `k` of the step, zeros at first.
  at::Tensor owner_error(size_t k, int64_t numel, c10::Device device);

  std::vector<at::Tensor> owner_errors_;
};

}  // namespace gpualloc
