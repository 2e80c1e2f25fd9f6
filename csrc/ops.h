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
  std::optional<at::Tensor> wire_state;  // [8] float32, a WireState: pack and unpack then do as wire_scale.h says
};

using Segments = c10::SmallVector<Segment, 8>;

// Throws ValueError for a tensor that is not what lies in its memory: a negative view, or one whose memory was given up, as FSDP does with
// parameters, or never was, as of forward-mode derivatives that are 0, of any size.
void check_has_memory(const at::Tensor& tensor, const char* argument);

// The tensors as stretches of the flat buffer, checked against it.
Segments segments_of(c10::ArrayRef<const at::Tensor*> tensors, const at::Tensor& flat);

// Whether pack and unpack have compiled code for the device, and need no operations of torch.
bool has_kernels(at::DeviceType device);

// flat [N], FP16 or BF16 = narrow(float(tensors) * scale), the tensors one after the other in their own memory order.
void pack(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters);
void pack(const Segments& segments, const at::Tensor& flat, double scale, const Counters& counters);  // where has_kernels

// tensors = convert(float(flat) * scale), counted on the way when asked.
void unpack(const at::Tensor& flat, at::TensorList tensors, double scale, const Counters& counters);
void unpack(const at::Tensor& flat, const Segments& segments, double scale, const Counters& counters);  // where has_kernels

// A WireState tensor on `device` for one of world_size ranks. `scale` is a power of two; `started`: it has followed gradients already
// (a run that is continued), so that it grows by one factor of two a step from the first update on.
at::Tensor make_wire_state(at::Device device, float scale, int world_size, bool started = false);

// The state for the next step. `agreed` [2] float32 is {absmax, saturated}, the maximum over the ranks; it may be the state's own
// elements 2 and 3, all-reduced in place. `nonfinite` [1] int64 is the step's number of non-finite averaged results. All on the
// state's device; on CUDA a kernel on the current stream.
void update_wire_state(const at::Tensor& wire_state, const at::Tensor& agreed, const at::Tensor& nonfinite);

// One implementation a device; all arguments have been checked.
void pack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void unpack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void pack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void unpack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters);
void update_cuda(const at::Tensor& wire_state, const at::Tensor& agreed, const at::Tensor& nonfinite);
// Any other device, and CUDA in a build without nvcc: torch's own operations, several passes.
void pack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters);
void unpack_aten(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters);

}  // namespace gpualloc
