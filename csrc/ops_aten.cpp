// pack and unpack in torch's own operations, for devices without a kernel of ours: right, in several passes.
#include <ATen/ATen.h>

#include "ops.h"

namespace gpualloc {
namespace {

at::Tensor in_memory_order(const at::Tensor& tensor) { return tensor.as_strided({tensor.numel()}, {1}); }

// Times an element of the WireState: its scale (0) or its inverse (1).
at::Tensor scaled(const at::Tensor& values, const Counters& counters, int64_t element) {
  return counters.wire_state.has_value() ? values.mul(counters.wire_state->select(0, element)) : values;
}

void count_nonfinite(const at::Tensor& result, const Counters& counters) {
  if (counters.nonfinite.has_value()) counters.nonfinite->add_(result.isfinite().logical_not().sum());
}

}  // namespace

void pack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters) {
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors) {
    flat.narrow(0, begin, tensor.numel()).copy_(scaled(in_memory_order(tensor).to(at::kFloat).mul(scale), counters, 0));
    begin += tensor.numel();
  }
  count_nonfinite(flat, counters);
}

void unpack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters) {
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors) {
    const at::Tensor result = scaled(flat.narrow(0, begin, tensor.numel()).to(at::kFloat).mul_(scale), counters, 1);
    if (counters.wire_state.has_value() && result.numel() > 0) {
      const at::Tensor absmax = counters.wire_state->narrow(0, 2, 1);
      absmax.copy_(at::maximum(absmax, result.abs().max()));
    }
    in_memory_order(tensor).copy_(result);
    count_nonfinite(tensor, counters);
    if (counters.sumsq.has_value()) counters.sumsq->add_(result.square().sum(at::kDouble));
    begin += tensor.numel();
  }
}

}  // namespace gpualloc
