// The gradient exchange on CUDA (formulas in csrc/exchange.h, format in csrc/exchange_format.h).
//
// Shapes: a bucket [n], cut into W shards [S]; any alignment but of INT8 wires.
// Launch, 8 bits: one warp for a block of kInt8Block elements, 8 warps for a chunk of kChunk; grid (chunks of a shard, W).
// Launch, 16 bits: one access of 16 bytes on the wider side a thread.
// Traffic per element, bytes read + written, with W shards and, in brackets, with error feedback:
//   quantize 4 + 1 (8 + 5), reduce_int8 W + 1 (W + 4 + 5), dequantize 1 + 4, sum_shards 2 W + 2 (2 W + 4 + 6),
//   pack_with_feedback 8 + 6.
// FP32 operations are written as intrinsics, which the compiler does not fuse: the bits are the CPU's.
#include "kernels/exchange.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/device_convert.cuh"

namespace gpualloc::cuda {
namespace {

constexpr int kBlock = static_cast<int>(kInt8Block);
constexpr int kItems = kBlock / 32;  // elements of a block that a lane has, in halves of 4: 16 bytes of FP32, 4 of INT8
constexpr int kHalves = kItems / 4;
static_assert(kChunk == kBlock * kWarpsPerChunk);
constexpr int64_t kMaxGridY = 65535;

__device__ int lane() { return static_cast<int>(threadIdx.x % 32); }

// Which element of its block a lane's item is: in each half of the block, a warp's accesses follow each other without gaps.
__device__ int element_of(int item) { return item / 4 * (kBlock / kHalves) + lane() * 4 + item % 4; }

// values[item] = block[element_of(item)], 0 from `numel` on.
__device__ void load_block(const float* __restrict__ block, int64_t numel, float (&values)[kItems]) {
  const auto* const packs = reinterpret_cast<const Pack<float, 4>*>(block);
  if (numel >= kBlock && is_aligned(packs)) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const Pack<float, 4> pack = packs[half * 32 + lane()];
#pragma unroll
      for (int i = 0; i < 4; ++i) values[half * 4 + i] = pack.lane[i];
    }
  } else {
#pragma unroll
    for (int item = 0; item < kItems; ++item) values[item] = element_of(item) < numel ? block[element_of(item)] : 0.0f;
  }
}

__device__ void store_block(const float (&values)[kItems], float* block, int64_t numel) {
  auto* const packs = reinterpret_cast<Pack<float, 4>*>(block);
  if (numel >= kBlock && is_aligned(packs)) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      packs[half * 32 + lane()] = {values[half * 4], values[half * 4 + 1], values[half * 4 + 2], values[half * 4 + 3]};
    }
  } else {
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      if (element_of(item) < numel) block[element_of(item)] = values[item];
    }
  }
}

// products[item] = value * scale of one block of a shard at `values`.
__device__ void load_int8_block(const uint8_t* __restrict__ values, float scale, float (&products)[kItems]) {
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const auto pack = reinterpret_cast<const Pack<int8_t, 4>*>(values)[half * 32 + lane()];
#pragma unroll
    for (int i = 0; i < 4; ++i) products[half * 4 + i] = __fmul_rn(static_cast<float>(pack.lane[i]), scale);
  }
}

__device__ float load_scale(const uint8_t* __restrict__ scale) { return *reinterpret_cast<const float*>(scale); }

__device__ float largest_magnitude(const float (&v)[kItems]) {
  unsigned bits = 0;  // of magnitudes, which are ordered as their bits are; NaN is the largest
#pragma unroll
  for (int item = 0; item < kItems; ++item) bits = max(bits, __float_as_uint(v[item]) & 0x7fffffffu);
  for (int step = 16; step > 0; step /= 2) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, step));
  return __uint_as_float(bits);
}

// Writes the values and the scale of the block v, and leaves in v what that lost.
__device__ void quantize_block(float (&v)[kItems], uint8_t* values, uint8_t* scale_at) {
  constexpr float kNoFraction = 0x1.8p+23f;  // a sum with it has no bits for a fraction, and the integer in its lowest ones
  const float scale = block_scale(largest_magnitude(v));
  const bool sends = scale > 0;
  const float inverse = __frcp_rn(sends ? scale : 1.0f);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    Pack<int8_t, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& value = v[half * 4 + i];
      const float sum = __fadd_rn(__fmul_rn(value, inverse), kNoFraction);
      pack.lane[i] = sends ? static_cast<int8_t>(__float_as_uint(sum) & 0xffu) : int8_t{0};
      value = sends ? __fsub_rn(value, __fmul_rn(__fsub_rn(sum, kNoFraction), scale)) : 0.0f;
    }
    reinterpret_cast<Pack<int8_t, 4>*>(values)[half * 32 + lane()] = pack;
  }
  if (lane() == 0) *reinterpret_cast<float*>(scale_at) = scale;
}

// --- 8 bits -----------------------------------------------------------------------------------------------------------

// The block of a warp: where it begins in its shard, and where its values and scale lie in a shard at `shard`.
__device__ int64_t block_begin() { return static_cast<int64_t>(blockIdx.x) * kChunk + threadIdx.x / 32 * kBlock; }

__host__ __device__ int64_t scale_offset(int64_t shard_numel, int64_t begin) { return shard_numel + begin / kInt8Block * 4; }

template <bool kResidual>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const float* __restrict__ source, int64_t numel, float scale,
                                                            float* __restrict__ residual, uint8_t* __restrict__ wire, int64_t shard_numel) {
  const int64_t begin = block_begin();
  if (begin >= shard_numel) return;
  const int64_t first = blockIdx.y * shard_numel + begin, left = numel - first;
  uint8_t* const shard = wire + blockIdx.y * int8_shard_bytes(shard_numel);
  float v[kItems], rest[kItems];
  load_block(source + first, left, v);
  if constexpr (kResidual) load_block(residual + first, left, rest);
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    v[item] = __fmul_rn(v[item], scale);
    if constexpr (kResidual) v[item] = __fadd_rn(v[item], rest[item]);
  }
  quantize_block(v, shard + begin, shard + scale_offset(shard_numel, begin));
  if constexpr (kResidual) store_block(v, residual + first, left);
}

template <bool kError>
__global__ void __launch_bounds__(kThreads) reduce_int8_kernel(const uint8_t* __restrict__ shards, int64_t shard_numel, int64_t world_size,
                                                               uint8_t* __restrict__ out, float* __restrict__ error) {
  const int64_t begin = block_begin();
  if (begin >= shard_numel) return;
  const int64_t shard_bytes = int8_shard_bytes(shard_numel);
  const uint8_t* values = shards + begin;
  const uint8_t* scale = shards + scale_offset(shard_numel, begin);
  float sum[kItems];
  load_int8_block(values, load_scale(scale), sum);
#pragma unroll 4
  for (int64_t rank = 1; rank < world_size; ++rank) {
    float products[kItems];
    load_int8_block(values + rank * shard_bytes, load_scale(scale + rank * shard_bytes), products);
#pragma unroll
    for (int item = 0; item < kItems; ++item) sum[item] = __fadd_rn(sum[item], products[item]);
  }
  if constexpr (kError) {
    float kept[kItems];
    load_block(error + begin, kBlock, kept);
#pragma unroll
    for (int item = 0; item < kItems; ++item) sum[item] = __fadd_rn(sum[item], kept[item]);
  }
  quantize_block(sum, out + begin, out + scale_offset(shard_numel, begin));
  if constexpr (kError) store_block(sum, error + begin, kBlock);
}

template <bool kSumsq>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint8_t* __restrict__ wire, float* __restrict__ target, int64_t numel, int64_t shard_numel,
                      const Counters counters) {
  if constexpr (kSumsq) let_sum_start();
  const int64_t begin = block_begin(), first = blockIdx.y * shard_numel + begin;
  const int64_t left = begin < shard_numel ? numel - first : 0;
  unsigned nonfinite = 0;
  float sumsq = 0;
  if (left > 0) {
    const uint8_t* const shard = wire + blockIdx.y * int8_shard_bytes(shard_numel);
    float values[kItems];
    load_int8_block(shard + begin, load_scale(shard + scale_offset(shard_numel, begin)), values);
    store_block(values, target + first, left);
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const float value = element_of(item) < left ? values[item] : 0.0f;
      nonfinite += !is_finite(value);
      if constexpr (kSumsq) sumsq = fmaf(value, value, sumsq);
    }
  }
  add_nonfinite(nonfinite, counters.nonfinite);
  if constexpr (kSumsq) {
    const int64_t chunk = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    const float sum = warp_sum(sumsq);
    if (lane() == 0) layout(counters.workspace).warp_sums[chunk * kWarpsPerChunk + threadIdx.x / 32] = sum;
  }
}

// --- 16 bits ----------------------------------------------------------------------------------------------------------

// *to = narrow(value); returns value - float(*to), 0 where that is not finite.
template <typename Half>
__device__ float narrow_and_keep(float value, Half& to) {
  narrow(value, to);
  const float lost = __fsub_rn(value, widen(to));
  return is_finite(lost) ? lost : 0.0f;
}

template <typename Half, bool kError, int kVector>
__device__ void sum_pack(const Half* __restrict__ shards, int64_t stride, int64_t world_size, Half* __restrict__ out,
                         float* __restrict__ error) {
  using Halves = Pack<Half, kVector>;
  using Floats = Pack<float, kVector>;
  Halves pack = *reinterpret_cast<const Halves*>(shards);
  Floats sum;
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum.lane[i] = widen(pack.lane[i]);
#pragma unroll 4
  for (int64_t rank = 1; rank < world_size; ++rank) {
    const Halves next = *reinterpret_cast<const Halves*>(shards + rank * stride);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum.lane[i] = __fadd_rn(sum.lane[i], widen(next.lane[i]));
  }
  if constexpr (kError) {
    const Floats kept = *reinterpret_cast<const Floats*>(error);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum.lane[i] = narrow_and_keep(__fadd_rn(sum.lane[i], kept.lane[i]), pack.lane[i]);
    *reinterpret_cast<Floats*>(error) = sum;
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) narrow(sum.lane[i], pack.lane[i]);
  }
  *reinterpret_cast<Halves*>(out) = pack;
}

// kVector elements a thread.
template <typename Half, bool kError, int kVector>
__global__ void __launch_bounds__(kThreads) sum_shards_kernel(const Half* __restrict__ shards, int64_t numel, int64_t world_size,
                                                              Half* __restrict__ out, float* __restrict__ error, bool aligned) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (aligned && begin + kVector <= numel) {
    return sum_pack<Half, kError, kVector>(shards + begin, numel, world_size, out + begin, error + begin);
  }
  for (int64_t i = begin; i < begin + kVector && i < numel; ++i) {
    sum_pack<Half, kError, 1>(shards + i, numel, world_size, out + i, error + i);
  }
}

template <typename Half, int kVector>
__device__ void feedback_pack(const float* __restrict__ source, float scale, float* __restrict__ residual, Half* __restrict__ wire) {
  using Floats = Pack<float, kVector>;
  const Floats gradient = *reinterpret_cast<const Floats*>(source);
  Floats rest = *reinterpret_cast<const Floats*>(residual);
  Pack<Half, kVector> pack;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    rest.lane[i] = narrow_and_keep(__fadd_rn(__fmul_rn(gradient.lane[i], scale), rest.lane[i]), pack.lane[i]);
  }
  *reinterpret_cast<Floats*>(residual) = rest;
  *reinterpret_cast<Pack<Half, kVector>*>(wire) = pack;
}

template <typename Half, int kVector>
__global__ void __launch_bounds__(kThreads) feedback_kernel(const float* __restrict__ source, float scale, float* __restrict__ residual,
                                                            Half* __restrict__ wire, int64_t numel, bool aligned) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (aligned && begin + kVector <= numel) return feedback_pack<Half, kVector>(source + begin, scale, residual + begin, wire + begin);
  for (int64_t i = begin; i < begin + kVector && i < numel; ++i) feedback_pack<Half, 1>(source + i, scale, residual + i, wire + i);
}

// --- launchers --------------------------------------------------------------------------------------------------------

// Whether the elements at every one of the pointers can be accessed kVector at a time.
template <int kVector, typename... T>
bool all_aligned(const T*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % (sizeof(T) * kVector) == 0) && ...);
}

// Blocks of kThreads threads with `per_thread` elements each; 0 where a grid cannot have so many.
unsigned grid_for(int64_t numel, int64_t per_thread) {
  const int64_t blocks = (numel + kThreads * per_thread - 1) / (kThreads * per_thread);
  return blocks <= INT32_MAX ? static_cast<unsigned>(blocks) : 0;
}

template <typename Half, bool kError>
cudaError_t launch_sum_shards_as(const void* shards, int64_t world_size, void* out, int64_t numel, float* error, cudaStream_t stream) {
  constexpr int kVector = kError ? 4 : 8;
  const auto* const from = static_cast<const Half*>(shards);
  auto* const to = static_cast<Half*>(out);
  const unsigned grid = grid_for(numel, kVector);
  if (grid == 0) return numel == 0 ? cudaSuccess : cudaErrorInvalidValue;
  const bool aligned = numel % kVector == 0 && all_aligned<kVector>(from, to, error);
  sum_shards_kernel<Half, kError, kVector><<<grid, kThreads, 0, stream>>>(from, numel, world_size, to, error, aligned);
  return cudaGetLastError();
}

template <typename Half>
cudaError_t launch_feedback_as(const float* source, float scale, float* residual, void* wire, int64_t numel, cudaStream_t stream) {
  constexpr int kVector = 4;
  auto* const to = static_cast<Half*>(wire);
  const unsigned grid = grid_for(numel, kVector);
  if (grid == 0) return numel == 0 ? cudaSuccess : cudaErrorInvalidValue;
  const bool aligned = all_aligned<kVector>(source, residual, to);
  feedback_kernel<Half, kVector><<<grid, kThreads, 0, stream>>>(source, scale, residual, to, numel, aligned);
  return cudaGetLastError();
}

// The grid of the INT8 kernels over `num_shards` shards; without blocks where there is nothing to do.
dim3 int8_grid(int64_t shard_numel, int64_t num_shards) {
  return dim3(grid_for(shard_numel, kItems), static_cast<unsigned>(num_shards));
}

}  // namespace

int launch_sum_shards(const void* shards, int64_t world_size, void* out, Dtype dtype, int64_t numel, float* error, void* stream) {
  const auto with_error = dtype == Dtype::f16 ? launch_sum_shards_as<__half, true> : launch_sum_shards_as<__nv_bfloat16, true>;
  const auto without = dtype == Dtype::f16 ? launch_sum_shards_as<__half, false> : launch_sum_shards_as<__nv_bfloat16, false>;
  const auto launch = error != nullptr ? with_error : without;
  return launch(shards, world_size, out, numel, error, static_cast<cudaStream_t>(stream));
}

int launch_quantize(const float* source, int64_t numel, float scale, float* residual, uint8_t* wire, int64_t world_size, void* stream) {
  const int64_t per_shard = shard_numel(numel, world_size);
  const dim3 grid = int8_grid(per_shard, world_size);
  if (numel == 0) return cudaSuccess;
  if (grid.x == 0 || world_size > kMaxGridY) return cudaErrorInvalidValue;
  const auto kernel = residual != nullptr ? quantize_kernel<true> : quantize_kernel<false>;
  kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(source, numel, scale, residual, wire, per_shard);
  return cudaGetLastError();
}

int launch_reduce_int8(const uint8_t* shards, int64_t shard_numel, int64_t world_size, uint8_t* out, float* error, void* stream) {
  const dim3 grid = int8_grid(shard_numel, 1);
  if (shard_numel == 0) return cudaSuccess;
  if (grid.x == 0) return cudaErrorInvalidValue;
  const auto kernel = error != nullptr ? reduce_int8_kernel<true> : reduce_int8_kernel<false>;
  kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(shards, shard_numel, world_size, out, error);
  return cudaGetLastError();
}

int64_t dequantize_chunks(int64_t numel, int64_t world_size) { return (shard_numel(numel, world_size) + kChunk - 1) / kChunk * world_size; }

int launch_dequantize(const uint8_t* wire, float* target, int64_t numel, int64_t world_size, const Counters& counters, void* stream) {
  const int64_t per_shard = shard_numel(numel, world_size);
  const dim3 grid = int8_grid(per_shard, world_size);
  if (numel == 0) return cudaSuccess;
  if (grid.x == 0 || world_size > kMaxGridY) return cudaErrorInvalidValue;
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  const auto kernel = counters.sumsq != nullptr ? dequantize_kernel<true> : dequantize_kernel<false>;
  kernel<<<grid, kThreads, 0, cuda_stream>>>(wire, target, numel, per_shard, counters);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || counters.sumsq == nullptr) return error;
  return launch_sum(counters, dequantize_chunks(numel, world_size), cuda_stream);
}

int launch_pack_with_feedback(const float* source, float scale, float* residual, void* wire, Dtype wire_dtype, int64_t numel, void* stream) {
  const auto launch = wire_dtype == Dtype::f16 ? launch_feedback_as<__half> : launch_feedback_as<__nv_bfloat16>;
  return launch(source, scale, residual, wire, numel, static_cast<cudaStream_t>(stream));
}

}  // namespace gpualloc::cuda
