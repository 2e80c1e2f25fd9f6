// pack and unpack in torch's own operations, for devices without a kernel of ours: right, in several passes.
#include <ATen/ATen.h>

#include "ops.h"

namespace gpualloc {
namespace {

at::Tensor in_memory_order(const at::Tensor& tensor) { return tensor.as_strided({tensor.numel()}, {1}); }

// One field of the WireState, by its place: [] FP32.
enum Field : int64_t { kScale, kInverse, kAbsmax, kSaturated, kLimit };
at::Tensor field(const at::Tensor& wire_state, Field place) { return wire_state.select(0, place); }

// The v that wire_scale.h makes of u, noted in the state.
at::Tensor on_wire(const at::Tensor& u, const at::Tensor& wire_state) {
  if (u.numel() == 0) return u;
  const at::Tensor finite = u.isfinite(), limit = field(wire_state, kLimit);
  const at::Tensor absmax = at::where(finite, u.abs(), 0).max(), scaled = u.mul(field(wire_state, kScale));
  const at::Tensor saturated = absmax.mul(field(wire_state, kScale)).gt(limit).to(at::kFloat);
  field(wire_state, kAbsmax).copy_(at::maximum(field(wire_state, kAbsmax), absmax));
  field(wire_state, kSaturated).copy_(at::maximum(field(wire_state, kSaturated), saturated));
  return at::where(finite, at::clamp(scaled, limit.neg(), limit), u);
}

void count_nonfinite(const at::Tensor& result, const Counters& counters) {
  if (counters.nonfinite.has_value()) counters.nonfinite->add_(result.isfinite().logical_not().sum());
}

}  // namespace

void pack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters) {
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors) {
    const at::Tensor u = in_memory_order(tensor).to(at::kFloat).mul(scale);
    flat.narrow(0, begin, tensor.numel()).copy_(counters.wire_state.has_value() ? on_wire(u, *counters.wire_state) : u);
    begin += tensor.numel();
  }
  count_nonfinite(flat, counters);
}

void unpack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters) {
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors) {
    const at::Tensor result = flat.narrow(0, begin, tensor.numel()).to(at::kFloat).mul_(scale);
    if (counters.wire_state.has_value()) result.mul_(field(*counters.wire_state, kInverse));
    in_memory_order(tensor).copy_(result);
    count_nonfinite(tensor, counters);
    if (counters.sumsq.has_value()) counters.sumsq->add_(result.square().sum(at::kDouble));
    begin += tensor.numel();
  }
}

}  // namespace gpualloc
