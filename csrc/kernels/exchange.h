// Launchers of the CUDA kernels of the gradient exchange: raw pointers, sizes, a stream. No torch. Formulas in csrc/exchange.h.
//
// All are asynchronous on `stream` of the current device and return a cudaError_t, 0 for success. Memory must not overlap; INT8
// wires start at a multiple of 16 bytes, other memory anywhere.
#pragma once

#include <cstdint>

#include "exchange_format.h"
#include "kernels/convert.h"
#include "segment.h"

namespace gpualloc::cuda {

// shards [world_size * numel] and out [numel] of `dtype`, FP16 or BF16; error [numel] or null.
int launch_sum_shards(const void* shards, int64_t world_size, void* out, Dtype dtype, int64_t numel, float* error, void* stream);

// source [numel]; wire [world_size * int8_shard_bytes(shard_numel(numel, world_size))]; residual [numel] or null.
int launch_quantize(const float* source, int64_t numel, float scale, float* residual, uint8_t* wire, int64_t world_size, void* stream);

// shards [world_size * int8_shard_bytes(shard_numel)], out [int8_shard_bytes(shard_numel)]; error [shard_numel] or null.
int launch_reduce_int8(const uint8_t* shards, int64_t shard_numel, int64_t world_size, uint8_t* out, float* error, void* stream);

// wire as for launch_quantize; target [numel]. With counters.sumsq, workspace_bytes(dequantize_chunks(numel, world_size)) or more of
// workspace; counters.wire is not used.
int launch_dequantize(const uint8_t* wire, float* target, int64_t numel, int64_t world_size, const Counters& counters, void* stream);
int64_t dequantize_chunks(int64_t numel, int64_t world_size);

// source, residual and wire [numel]; wire FP16 or BF16.
int launch_pack_with_feedback(const float* source, float scale, float* residual, void* wire, Dtype wire_dtype, int64_t numel, void* stream);

}  // namespace gpualloc::cuda
