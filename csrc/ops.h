// The operations on tensors: arguments checked, device chosen. Formulas in segment.h; schemas in ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>

#include "segment.h"

namespace gpualloc {

// Where results are counted; an absent tensor is not counted. All on the tensors' device and added to.
struct Counters {
  std::optional<at::Tensor> nonfinite;   // [1] int64
  std::optional<at::Tensor> sumsq;       // [1] float64; unpack only
  std::optional<at::Tensor> wire_state;  // [4] float32, a WireState: a further factor, and unpack's largest magnitude (FP32 targets)
};

using Segments = c10::SmallVector<Segment, 8>;

// flat [N], FP16 or BF16 = narrow(float(tensors) * scale), the tensors one after the other in their own memory order.
void pack(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters);

// tensors = convert(float(flat) * scale), counted on the way when asked.
void unpack(const at::Tensor& flat, at::TensorList tensors, double scale, const Counters& counters);

// A fresh WireState tensor, and its step to the next one; `nonfinite` [1] int64 counts the last step's non-finite results.
at::Tensor make_wire_state(at::Device device, float scale);
void update_wire_state(const at::Tensor& wire_state, const at::Tensor& nonfinite);

// One implementation a device; all arguments have been checked.
void pack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void unpack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void pack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void unpack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void update_cuda(const at::Tensor& wire_state, const at::Tensor& nonfinite);
// Any other device, and CUDA in a build without nvcc: torch's own operations, several passes.
void pack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters);
void unpack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters);

}  // namespace gpualloc
