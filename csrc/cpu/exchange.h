// CPU loops of the gradient exchange (csrc/exchange.h) over one contiguous stretch of one shard, vectorised; the reference
// that the CUDA kernels are tested against. Memory of any alignment.
#pragma once

#include "cpu/convert.h"
#include "exchange_format.h"
#include "segment.h"

namespace gpualloc::cpu {

struct Exchangers {
  const char* isa;  // as of Converters
  // out[i] = narrow(sum over r < world_size of shards[r * stride + i] (+ error[i])), i < numel; `error` may be null.
  void (*sum_shards)(const uint16_t* shards, int64_t stride, int64_t world_size, uint16_t* out, Dtype dtype, int64_t numel, float* error);
  // values and scales of source[i] * scale (+ residual[i]), i < numel, and of zeros up to padded_numel, a multiple of
  // kInt8Block; `residual` [numel] may be null.
  void (*quantize)(const float* source, int64_t numel, float scale, float* residual, int8_t* values, float* scales, int64_t padded_numel);
  // The stretches of the world_size shards lie `stride` bytes apart; numel is a multiple of kInt8Block; `error` may be null.
  void (*reduce_int8)(const int8_t* values, const float* scales, int64_t stride, int64_t world_size, int8_t* out_values,
                      float* out_scales, int64_t numel, float* error);
  // target[i] = values[i] * scales[i / kInt8Block], i < numel; absmax is not filled.
  Tally (*dequantize)(const int8_t* values, const float* scales, float* target, int64_t numel, bool want_sumsq);
  // wire[i] = narrow(source[i] * scale + residual[i]), residual[i] = what that lost, i < numel.
  void (*pack_with_feedback)(const float* source, float scale, float* residual, uint16_t* wire, Dtype wire_dtype, int64_t numel);
};

// As converters() and all_converters().
const Exchangers& exchangers();
const Exchangers* all_exchangers();

extern const Exchangers scalar_exchangers;
extern const Exchangers avx2_exchangers;    // defined on x86 only
extern const Exchangers avx512_exchangers;  // defined on x86 only

}  // namespace gpualloc::cpu
