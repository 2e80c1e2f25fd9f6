// The operations on tensors: arguments checked, device chosen. Formulas in segment.h; schemas in ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>

#include "segment.h"

namespace gpualloc {

// Where results are counted; an absent tensor is not counted. All on the tensors' device, one element each, added to.
struct CounterTensors {
  std::optional<at::Tensor> nonfinite;  // int64
  std::optional<at::Tensor> sumsq;      // float64; unpack only
};

using Segments = c10::SmallVector<Segment, 8>;

// flat [N], FP16 or BF16 = narrow(float(tensors) * scale), the tensors one after the other in their own memory order.
void pack(at::TensorList tensors, const at::Tensor& flat, double scale, const std::optional<at::Tensor>& nonfinite);

// tensors = convert(float(flat) * scale), counted on the way when asked.
void unpack(const at::Tensor& flat, at::TensorList tensors, double scale, const std::optional<at::Tensor>& sumsq,
            const std::optional<at::Tensor>& nonfinite);

// One implementation a device. `numel` is that of the flat buffer; all arguments have been checked.
void pack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const CounterTensors& counters);
void unpack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const CounterTensors& counters);
void pack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const CounterTensors& counters);
void unpack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const CounterTensors& counters);
// Any other device, and CUDA in a build without nvcc: torch's own operations, several passes.
void pack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const CounterTensors& counters);
void unpack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const CounterTensors& counters);

}  // namespace gpualloc
