// pack and unpack in torch's own operations, for devices without a kernel of ours: right, in several passes.
#include <ATen/ATen.h>

#include "ops.h"

namespace gpualloc {
namespace {

at::Tensor in_memory_order(const at::Tensor& tensor) { return tensor.as_strided({tensor.numel()}, {1}); }

void count_nonfinite(const at::Tensor& result, const CounterTensors& counters) {
  if (counters.nonfinite.has_value()) counters.nonfinite->add_(result.isfinite().logical_not().sum());
}

}  // namespace

void pack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const CounterTensors& counters) {
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors) {
    flat.narrow(0, begin, tensor.numel()).copy_(in_memory_order(tensor).to(at::kFloat).mul(scale));
    begin += tensor.numel();
  }
  count_nonfinite(flat, counters);
}

void unpack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const CounterTensors& counters) {
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors) {
    const at::Tensor result = flat.narrow(0, begin, tensor.numel()).to(at::kFloat).mul_(scale);
    in_memory_order(tensor).copy_(result);
    count_nonfinite(tensor, counters);
    if (counters.sumsq.has_value()) counters.sumsq->add_(result.square().sum(at::kDouble));
    begin += tensor.numel();
  }
}

}  // namespace gpualloc
