// pack and unpack on CUDA (formulas in csrc/segment.h).
//
// Shapes: `flat` [N] FP16 or BF16; segment k is [numel_k], N = sum of numel_k, any dtype, any alignment.
// Launch: one block of kThreads for every chunk of kChunk elements of a segment, all in one grid. The block looks its
// segment up in the parameter table.
// Traffic per element: FP32 to 16 bits 4 B read and 2 B written, and the other way round. Counting happens on the registers;
// where squares are summed, every warp leaves 4 B for 256 elements, and a second launch of a few blocks adds those up.
//
// Chosen on an H200 (2026-11, share of the copy bandwidth at 124 M and 1.1 B FP32 elements): one block a chunk instead of a
// persistent grid 0.96 / 0.98 against 0.88 / 0.90 for unpack; 16-byte accesses on the wider side, where 32 bytes a thread
// leave gaps between the stores of a warp, 0.59 / 0.60; no ticket to find the last block inside unpack, whose fence holds every
// block until its stores have landed, 0.72 / 0.75.
#include "kernels/convert.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/device_convert.cuh"

namespace gpualloc::cuda {
namespace {

constexpr int kItems = kChunk / kThreads;  // elements of a chunk that a thread converts, all loaded before the first is stored
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kSmallTable = 4, kMediumTable = 320;  // a bucket; MobileNetV2 158, ResNet-50 161, ViT-L 296 tensors
constexpr int kHints = 256;

template <int kCapacity>
struct Table {
  void* data[kCapacity];
  int64_t begin[kCapacity + 1];  // in the flat buffer; begin[k + 1] - begin[k] elements
  int32_t chunk[kCapacity + 1];  // chunks of all segments before k
  int32_t count;
  int32_t hint_shift;
  uint16_t hint[kHints];  // the segment of chunk c is hint[c >> hint_shift] or one soon after it
  uint8_t dtype[kCapacity];
};
static_assert(sizeof(Table<kMaxSegments>) + 128 <= 32764, "kernel parameters");

// What one thread saw.
struct Tally {
  unsigned nonfinite = 0;
  float sumsq = 0;
  float absmax = 0;  // the largest finite |u|
};

// The factors of pack and unpack; `wire` and `limit` are a WireState's, and only used by a pack with one.
struct Factors {
  float scale, wire, limit;
};

template <bool kSumsq, bool kOnWire, typename From, typename To>
__device__ void convert(From from, To& to, const Factors& factors, Tally& tally) {
  float value = widen(from) * factors.scale;
  if constexpr (kOnWire) {
    if (is_finite(value)) {
      tally.absmax = fmaxf(tally.absmax, fabsf(value));
      value = fminf(fmaxf(value * factors.wire, -factors.limit), factors.limit);
    }
  }
  narrow(value, to);
  tally.nonfinite += !is_finite(to);
  if constexpr (kSumsq) tally.sumsq = fmaf(value, value, tally.sumsq);
}

// --- one chunk: numel <= kChunk elements -----------------------------------------------------------------------------

template <bool kSumsq, bool kOnWire, typename From, typename To>
__device__ void convert_chunk(const From* __restrict__ from, To* __restrict__ to, int numel, const Factors& factors, Tally& tally) {
  constexpr int kVector = 16 / (sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
  constexpr int kUnroll = kItems / kVector;
  const auto* from_packs = reinterpret_cast<const Pack<From, kVector>*>(from);
  auto* to_packs = reinterpret_cast<Pack<To, kVector>*>(to);
  int done = 0;
  if (is_aligned(from_packs) && is_aligned(to_packs)) {
    if (numel == kChunk) {
      Pack<From, kVector> in[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) in[u] = from_packs[u * kThreads + threadIdx.x];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        Pack<To, kVector> out;
#pragma unroll
        for (int lane = 0; lane < kVector; ++lane) convert<kSumsq, kOnWire>(in[u].lane[lane], out.lane[lane], factors, tally);
        to_packs[u * kThreads + threadIdx.x] = out;
      }
      return;
    }
    for (int pack = threadIdx.x; pack < numel / kVector; pack += kThreads) {
      const Pack<From, kVector> in = from_packs[pack];
      Pack<To, kVector> out;
#pragma unroll
      for (int lane = 0; lane < kVector; ++lane) convert<kSumsq, kOnWire>(in.lane[lane], out.lane[lane], factors, tally);
      to_packs[pack] = out;
    }
    done = numel / kVector * kVector;
  }
  for (int i = done + threadIdx.x; i < numel; i += kThreads) convert<kSumsq, kOnWire>(from[i], to[i], factors, tally);
}

// --- kernels ----------------------------------------------------------------------------------------------------------

// kPack: flat is written from the segments; else the segments are written from flat.
template <bool kPack, bool kSumsq, bool kWire, typename Wire, typename T>
__device__ void convert_one(void* data, void* flat, int64_t flat_begin, int64_t offset, int numel, const Factors& factors, Tally& tally) {
  auto* tensor = static_cast<T*>(data) + offset;
  auto* wire = static_cast<Wire*>(flat) + flat_begin + offset;
  if constexpr (kPack) {
    convert_chunk<kSumsq, kWire>(tensor, wire, numel, factors, tally);
  } else {
    convert_chunk<kSumsq, false>(wire, tensor, numel, factors, tally);
  }
}

template <bool kPack, bool kSumsq, bool kWire, typename Wire, int kCapacity>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    convert_kernel(const __grid_constant__ Table<kCapacity> table, void* flat, float scale, const Counters counters) {
  if constexpr (kSumsq) let_sum_start();
  const auto chunk = static_cast<int>(blockIdx.x);
  int k = table.hint[chunk >> table.hint_shift];
  while (table.chunk[k + 1] <= chunk) ++k;
  const int64_t offset = static_cast<int64_t>(chunk - table.chunk[k]) * kChunk;
  const int64_t begin = table.begin[k];
  const int64_t left = table.begin[k + 1] - begin - offset;
  const int numel = left < kChunk ? static_cast<int>(left) : kChunk;
  void* const data = table.data[k];
  Factors factors{scale, 1, 0};
  if constexpr (kWire && kPack) factors = {scale, counters.wire->scale, counters.wire->limit};
  if constexpr (kWire && !kPack) factors.scale *= counters.wire->inverse;  // a power of two: exact
  Tally tally;
  switch (static_cast<Dtype>(table.dtype[k])) {
    case Dtype::f32: convert_one<kPack, kSumsq, kWire, Wire, float>(data, flat, begin, offset, numel, factors, tally); break;
    case Dtype::f16: convert_one<kPack, kSumsq, kWire, Wire, __half>(data, flat, begin, offset, numel, factors, tally); break;
    case Dtype::bf16: convert_one<kPack, kSumsq, kWire, Wire, __nv_bfloat16>(data, flat, begin, offset, numel, factors, tally); break;
    case Dtype::f64: convert_one<kPack, kSumsq, kWire, Wire, double>(data, flat, begin, offset, numel, factors, tally); break;
  }
  add_nonfinite(tally.nonfinite, counters.nonfinite);
  if constexpr (kWire && kPack) {
    float absmax = tally.absmax;
    for (int step = 16; step > 0; step /= 2) absmax = fmaxf(absmax, __shfl_down_sync(0xffffffffu, absmax, step));
    if (threadIdx.x % 32 == 0 && absmax > *const_cast<volatile float*>(&counters.wire->absmax)) {  // soon no warp beats it
      atomicMax(reinterpret_cast<int*>(&counters.wire->absmax), __float_as_int(absmax));  // magnitudes are ordered as their bits are
      if (absmax * factors.wire > factors.limit) counters.wire->saturated = 1;
    }
  }
  if constexpr (kSumsq) {
    const float sum = warp_sum(tally.sumsq);
    if (threadIdx.x % 32 == 0) layout(counters.workspace).warp_sums[static_cast<int64_t>(chunk) * kWarpsPerChunk + threadIdx.x / 32] = sum;
  }
}

__global__ void update_kernel(WireState* state, const float* agreed, const int64_t* nonfinite) {
  *state = next_state(*state, agreed[0], agreed[1] != 0, *nonfinite != 0);
}

// --- launchers --------------------------------------------------------------------------------------------------------

int64_t chunks_of(const Segment& segment) { return (segment.numel + kChunk - 1) / kChunk; }

template <bool kPack, bool kSumsq, bool kWire, typename Wire, int kCapacity>
cudaError_t launch_table(const Segment* segments, int num_segments, void* flat, float scale, const Counters& counters, cudaStream_t stream) {
  Table<kCapacity> table;
  int64_t chunks = 0;
  table.count = 0;
  for (int k = 0; k < num_segments; ++k) {
    if (segments[k].numel == 0) continue;
    table.data[table.count] = segments[k].data;
    table.begin[table.count] = segments[k].begin;
    table.begin[table.count + 1] = segments[k].begin + segments[k].numel;
    table.dtype[table.count] = static_cast<uint8_t>(segments[k].dtype);
    table.chunk[table.count] = static_cast<int32_t>(chunks);
    chunks += chunks_of(segments[k]);
    ++table.count;
  }
  if (table.count == 0) return cudaSuccess;
  if (chunks > INT32_MAX) return cudaErrorInvalidValue;  // 2**42 elements
  table.chunk[table.count] = static_cast<int32_t>(chunks);
  table.hint_shift = 0;
  while (((chunks - 1) >> table.hint_shift) >= kHints) ++table.hint_shift;
  for (int h = 0, k = 0; (static_cast<int64_t>(h) << table.hint_shift) < chunks; ++h) {
    while (table.chunk[k + 1] <= (h << table.hint_shift)) ++k;
    table.hint[h] = static_cast<uint16_t>(k);
  }
  convert_kernel<kPack, kSumsq, kWire, Wire, kCapacity><<<static_cast<unsigned>(chunks), kThreads, 0, stream>>>(table, flat, scale, counters);
  const cudaError_t error = cudaGetLastError();
  if constexpr (kSumsq) return error == cudaSuccess ? launch_sum(counters, chunks, stream) : error;
  return error;
}

template <bool kPack, bool kSumsq, bool kWire, typename Wire>
cudaError_t launch_sized(const Segment* segments, int num_segments, void* flat, float scale, const Counters& counters, cudaStream_t stream) {
  if (num_segments <= kSmallTable) {
    return launch_table<kPack, kSumsq, kWire, Wire, kSmallTable>(segments, num_segments, flat, scale, counters, stream);
  }
  if (num_segments <= kMediumTable) {
    return launch_table<kPack, kSumsq, kWire, Wire, kMediumTable>(segments, num_segments, flat, scale, counters, stream);
  }
  for (int begin = 0; begin < num_segments; begin += kMaxSegments) {
    const int count = std::min(kMaxSegments, num_segments - begin);
    const cudaError_t error = launch_table<kPack, kSumsq, kWire, Wire, kMaxSegments>(segments + begin, count, flat, scale, counters, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <bool kPack, bool kSumsq, typename Wire>
cudaError_t launch_wire(const Segment* segments, int num_segments, void* flat, float scale, const Counters& counters, cudaStream_t stream) {
  return counters.wire != nullptr ? launch_sized<kPack, kSumsq, true, Wire>(segments, num_segments, flat, scale, counters, stream)
                                  : launch_sized<kPack, kSumsq, false, Wire>(segments, num_segments, flat, scale, counters, stream);
}

template <bool kPack, bool kSumsq>
cudaError_t launch(const Segment* segments, int num_segments, void* flat, Dtype wire_dtype, float scale, const Counters& counters,
                   void* stream) {
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  return wire_dtype == Dtype::f16 ? launch_wire<kPack, kSumsq, __half>(segments, num_segments, flat, scale, counters, cuda_stream)
                                  : launch_wire<kPack, kSumsq, __nv_bfloat16>(segments, num_segments, flat, scale, counters, cuda_stream);
}

}  // namespace

int64_t chunks_for(const Segment* segments, int num_segments) {
  int64_t chunks = 0;
  for (int k = 0; k < num_segments; ++k) chunks += chunks_of(segments[k]);
  return chunks;
}

int launch_pack(const Segment* segments, int num_segments, void* flat, Dtype wire_dtype, float scale, Counters counters, void* stream) {
  return launch<true, false>(segments, num_segments, flat, wire_dtype, scale, counters, stream);
}

int launch_unpack(const Segment* segments, int num_segments, const void* flat, Dtype wire_dtype, float scale, Counters counters,
                  void* stream) {
  auto* const wire = const_cast<void*>(flat);  // only read
  return counters.sumsq == nullptr ? launch<false, false>(segments, num_segments, wire, wire_dtype, scale, counters, stream)
                                   : launch<false, true>(segments, num_segments, wire, wire_dtype, scale, counters, stream);
}

int launch_update(WireState* state, const float* agreed, const int64_t* nonfinite, void* stream) {
  update_kernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(state, agreed, nonfinite);
  return cudaGetLastError();
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace gpualloc::cuda
