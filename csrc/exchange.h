// The steps of a gradient exchange that sends 16 or 8 bits, on tensors: all-to-all of shards, a local sum in FP32, all-gather
// of the sums. Every rank rounds its own gradients once and the owner of a shard rounds the sum once; what a rounding lost
// may be kept and added in the next step (error feedback).
//
// All arithmetic is FP32 in a fixed order, so the bits do not depend on the device, the instruction set or the number of
// threads (a NaN's payload may). All tensors are contiguous, on one device, the CPU or CUDA (there on the current stream,
// without waiting); they must not overlap. The INT8 tensors start at a multiple of 16 bytes, as torch's allocators and
// int8_shard_bytes give it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "exchange_format.h"
#include "ops.h"

namespace gpualloc {

// Throw ValueError for what would not fit 64 bits, or nothing.
void check_world_size(int64_t world_size);
void check_numel(int64_t numel, const char* argument);

// out[i] = narrow(float(shards[0 * S + i]) + float(shards[1 * S + i]) + ... (+ error[i])), one rounding at the end.
// shards [W * S] FP16 or BF16; out [S] the same dtype; error [S] FP32 or absent, afterwards what the rounding lost, 0 where
// that is not finite.
void sum_shards(const at::Tensor& shards, const at::Tensor& out, const std::optional<at::Tensor>& error);

// v = source[i] * scale (+ residual[i]); every kInt8Block elements share s = block_scale(absmax), about absmax / 127; value =
// v * (1 / s) rounded to nearest even, in -127 .. 127. (1 / s is rounded once a block, so a v within 2**-16 steps of the middle
// between two values may go to the farther one; a division takes ten instructions an element on CUDA.)
// source [n] FP32; wire [W * int8_shard_bytes(S)] uint8, S = shard_numel(n, W); residual [n] FP32 or absent, afterwards
// v - value * s. A block with inf or NaN gets scale NaN, so that all of it arrives as NaN, values 0 and residual 0.
void quantize(const at::Tensor& source, const at::Tensor& wire, int64_t world_size, double scale,
              const std::optional<at::Tensor>& residual);

// a = value_0 * s_0 + value_1 * s_1 + ... (+ error[i]); out = a quantized as above; error = a - value * s of out.
// shards [W * B] uint8, B = int8_shard_bytes(S); out [B] uint8; error [S] FP32 or absent.
void reduce_int8(const at::Tensor& shards, const at::Tensor& out, int64_t world_size, const std::optional<at::Tensor>& error);

// target[i] = value * s. wire as quantize writes it; target [n] FP32; counters as for unpack, without the wire scale.
void dequantize(const at::Tensor& wire, const at::Tensor& target, int64_t world_size, const Counters& counters);

// v = source[i] * scale + residual[i]; wire[i] = narrow(v); residual[i] = v - float(wire[i]), 0 where that is not finite.
// source [n] FP32; wire [n] FP16 or BF16; residual [n] FP32.
void pack_with_feedback(const at::Tensor& source, const at::Tensor& wire, double scale, const at::Tensor& residual);

// One implementation a device; all arguments have been checked, an absent error or residual is null.
void sum_shards_cpu(const at::Tensor& shards, const at::Tensor& out, Dtype dtype, float* error);
void quantize_cpu(const at::Tensor& source, const at::Tensor& wire, int64_t world_size, float scale, float* residual);
void reduce_int8_cpu(const at::Tensor& shards, const at::Tensor& out, int64_t shard_numel, int64_t world_size, float* error);
void dequantize_cpu(const at::Tensor& wire, const at::Tensor& target, int64_t world_size, const Counters& counters);
void pack_with_feedback_cpu(const at::Tensor& source, const at::Tensor& wire, Dtype wire_dtype, float scale, float* residual);
void sum_shards_cuda(const at::Tensor& shards, const at::Tensor& out, Dtype dtype, float* error);
void quantize_cuda(const at::Tensor& source, const at::Tensor& wire, int64_t world_size, float scale, float* residual);
void reduce_int8_cuda(const at::Tensor& shards, const at::Tensor& out, int64_t shard_numel, int64_t world_size, float* error);
void dequantize_cuda(const at::Tensor& wire, const at::Tensor& target, int64_t world_size, const Counters& counters);
void pack_with_feedback_cuda(const at::Tensor& source, const at::Tensor& wire, Dtype wire_dtype, float scale, float* residual);

}  // namespace gpualloc
