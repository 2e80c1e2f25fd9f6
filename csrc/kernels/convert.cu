// pack and unpack on CUDA (formulas in csrc/segment.h).
//
// Shapes: `flat` [N] FP16 or BF16; segment k is [numel_k], N = sum of numel_k, any dtype, any alignment.
// Launch: kThreads threads; a chunk of kChunk elements of one segment per block and turn; a persistent grid of what the
// device holds at once. The block finds a chunk's segment by bisection in the parameter table.
// Traffic per element: FP32 to 16 bits 4 B read and 2 B written, and the other way round. Nothing else touches memory:
// counting happens on the registers before they are stored.
#include "kernels/convert.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

namespace gpualloc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 16;  // elements of a chunk that a thread handles, all loaded before the first is stored
constexpr int kChunk = kThreads * kItems;
constexpr int kMinBlocks = 4;  // per multiprocessor
constexpr int kSmallTable = 4, kMediumTable = 320;  // a bucket; MobileNetV2 158, ResNet-50 161, ViT-L 296 tensors

template <int kCapacity>
struct Table {
  void* data[kCapacity];
  int64_t begin[kCapacity + 1];     // in the flat buffer; begin[k + 1] - begin[k] elements
  int32_t chunk[kCapacity + 1];     // chunks of all segments before k
  uint8_t dtype[kCapacity];
  int32_t count;
};
static_assert(sizeof(Table<kMaxSegments>) + 128 <= 32764, "kernel parameters");

// --- one element ------------------------------------------------------------------------------------------------------

template <Dtype D> struct Storage;
template <> struct Storage<Dtype::f32> { using type = float; };
template <> struct Storage<Dtype::f64> { using type = double; };
template <> struct Storage<Dtype::f16> { using type = __half; };
template <> struct Storage<Dtype::bf16> { using type = __nv_bfloat16; };

__device__ float widen(float value) { return value; }
__device__ float widen(double value) { return static_cast<float>(value); }
__device__ float widen(__half value) { return __half2float(value); }
__device__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ void narrow(float value, float& to) { to = value; }
__device__ void narrow(float value, double& to) { to = static_cast<double>(value); }
__device__ void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

__device__ bool is_finite(float value) { return (__float_as_uint(value) & 0x7fffffffu) < 0x7f800000u; }
__device__ bool is_finite(double value) { return isfinite(value); }
__device__ bool is_finite(__half value) { return (__half_as_ushort(value) & 0x7fffu) < 0x7c00u; }
__device__ bool is_finite(__nv_bfloat16 value) { return (__bfloat16_as_ushort(value) & 0x7fffu) < 0x7f80u; }

// What one thread saw.
struct Tally {
  unsigned nonfinite = 0;
  float sumsq = 0;  // of at most kChunk / kThreads elements before it moves to FP64
};

template <bool kSumsq, typename From, typename To>
__device__ void convert(From from, To& to, float scale, Tally& tally) {
  const float value = widen(from) * scale;
  narrow(value, to);
  tally.nonfinite += !is_finite(to);
  if constexpr (kSumsq) tally.sumsq = fmaf(value, value, tally.sumsq);
}

// --- one chunk: numel <= kChunk elements -----------------------------------------------------------------------------

// A thread's access: 16 bytes on the wider side. Wider ones would leave gaps between the stores of a warp's threads, and
// half-written sectors cost unpack a third of its speed.
template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T lane[kVector];
};

template <typename T>
__device__ bool is_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(T) == 0;
}

template <bool kSumsq, typename From, typename To>
__device__ void convert_chunk(const From* __restrict__ from, To* __restrict__ to, int numel, float scale, Tally& tally) {
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
        for (int lane = 0; lane < kVector; ++lane) convert<kSumsq>(in[u].lane[lane], out.lane[lane], scale, tally);
        to_packs[u * kThreads + threadIdx.x] = out;
      }
      return;
    }
    for (int pack = threadIdx.x; pack < numel / kVector; pack += kThreads) {
      const Pack<From, kVector> in = from_packs[pack];
      Pack<To, kVector> out;
#pragma unroll
      for (int lane = 0; lane < kVector; ++lane) convert<kSumsq>(in.lane[lane], out.lane[lane], scale, tally);
      to_packs[pack] = out;
    }
    done = numel / kVector * kVector;
  }
  for (int i = done + threadIdx.x; i < numel; i += kThreads) convert<kSumsq>(from[i], to[i], scale, tally);
}

// --- sums over the block and the grid ---------------------------------------------------------------------------------

// The sum over the block, valid in thread 0, in an order that does not depend on timing.
__device__ double block_sum(double value) {
  __shared__ double warp_sums[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (const double sum : warp_sums) total += sum;
  }
  __syncthreads();  // warp_sums may be written again
  return total;
}

// Adds every block's sum to counters.sumsq: the last block to arrive adds the partial sums in the order of the blocks.
__device__ void add_to_grid_sum(double value, const Counters& counters) {
  auto* partial = static_cast<double*>(counters.workspace);
  auto* ticket = reinterpret_cast<unsigned*>(partial + kMaxBlocks);
  __shared__ bool is_last;
  const double sum = block_sum(value);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  double own = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) own += __ldcg(partial + block);
  const double total = block_sum(own);
  if (threadIdx.x == 0) {
    *counters.sumsq += total;
    *ticket = 0;
  }
}

// --- kernels ----------------------------------------------------------------------------------------------------------

// kPack: flat is written from the segments; else the segments are written from flat.
template <bool kPack, bool kSumsq, typename Wire, typename T>
__device__ void convert_one(void* data, void* flat, int64_t flat_begin, int64_t offset, int numel, float scale, Tally& tally) {
  auto* tensor = static_cast<T*>(data) + offset;
  auto* wire = static_cast<Wire*>(flat) + flat_begin + offset;
  if constexpr (kPack) {
    convert_chunk<kSumsq>(tensor, wire, numel, scale, tally);
  } else {
    convert_chunk<kSumsq>(wire, tensor, numel, scale, tally);
  }
}

template <bool kPack, bool kSumsq, typename Wire, int kCapacity>
__global__ void __launch_bounds__(kThreads, kMinBlocks) convert_kernel(const __grid_constant__ Table<kCapacity> table, void* flat, float scale,
                                                          const Counters counters) {
  double sumsq = 0;
  unsigned nonfinite = 0;
  const int num_chunks = table.chunk[table.count];
  for (int chunk = blockIdx.x; chunk < num_chunks; chunk += gridDim.x) {
    int low = 0, high = table.count - 1;  // the last segment whose first chunk is not after this one
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (table.chunk[middle] <= chunk) low = middle; else high = middle - 1;
    }
    const int64_t offset = static_cast<int64_t>(chunk - table.chunk[low]) * kChunk;
    const int64_t begin = table.begin[low];
    const int64_t left = table.begin[low + 1] - begin - offset;
    const int numel = left < kChunk ? static_cast<int>(left) : kChunk;
    Tally tally;
    switch (static_cast<Dtype>(table.dtype[low])) {
      case Dtype::f32: convert_one<kPack, kSumsq, Wire, float>(table.data[low], flat, begin, offset, numel, scale, tally); break;
      case Dtype::f16: convert_one<kPack, kSumsq, Wire, __half>(table.data[low], flat, begin, offset, numel, scale, tally); break;
      case Dtype::bf16: convert_one<kPack, kSumsq, Wire, __nv_bfloat16>(table.data[low], flat, begin, offset, numel, scale, tally); break;
      case Dtype::f64: convert_one<kPack, kSumsq, Wire, double>(table.data[low], flat, begin, offset, numel, scale, tally); break;
    }
    if constexpr (kSumsq) sumsq += tally.sumsq;
    nonfinite += tally.nonfinite;
  }
  if (counters.nonfinite != nullptr) {  // rare enough that one atomic a warp costs nothing
    for (int offset = 16; offset > 0; offset /= 2) nonfinite += __shfl_down_sync(0xffffffffu, nonfinite, offset);
    if (threadIdx.x % 32 == 0 && nonfinite != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(counters.nonfinite), static_cast<unsigned long long>(nonfinite));
    }
  }
  if constexpr (kSumsq) add_to_grid_sum(sumsq, counters);
}

// --- launchers --------------------------------------------------------------------------------------------------------

// Blocks of `kernel` that the current device runs at once, asked once per kernel and device.
template <typename Kernel>
cudaError_t resident_blocks(Kernel kernel, int* blocks) {
  static int cached[64] = {};  // races only write the same number
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (device < 64 && cached[device] != 0) {
    *blocks = cached[device];
    return cudaSuccess;
  }
  int per_multiprocessor = 0, multiprocessors = 0;
  if (const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, kThreads, 0)) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return error;
  *blocks = std::min(per_multiprocessor * multiprocessors, kMaxBlocks);
  if (device < 64) cached[device] = *blocks;
  return cudaSuccess;
}

template <bool kPack, bool kSumsq, typename Wire, int kCapacity>
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
    chunks += (segments[k].numel + kChunk - 1) / kChunk;
    ++table.count;
  }
  if (table.count == 0) return cudaSuccess;
  if (chunks > INT32_MAX) return cudaErrorInvalidValue;  // 2**31 chunks are 2**44 elements
  table.chunk[table.count] = static_cast<int32_t>(chunks);
  auto kernel = convert_kernel<kPack, kSumsq, Wire, kCapacity>;
  int blocks = 0;
  if (const cudaError_t error = resident_blocks(kernel, &blocks)) return error;
  kernel<<<static_cast<int>(std::min<int64_t>(blocks, chunks)), kThreads, 0, stream>>>(table, flat, scale, counters);
  return cudaGetLastError();
}

template <bool kPack, bool kSumsq, typename Wire>
cudaError_t launch_sized(const Segment* segments, int num_segments, void* flat, float scale, const Counters& counters, cudaStream_t stream) {
  if (num_segments <= kSmallTable) {
    return launch_table<kPack, kSumsq, Wire, kSmallTable>(segments, num_segments, flat, scale, counters, stream);
  }
  if (num_segments <= kMediumTable) {
    return launch_table<kPack, kSumsq, Wire, kMediumTable>(segments, num_segments, flat, scale, counters, stream);
  }
  for (int begin = 0; begin < num_segments; begin += kMaxSegments) {
    const int count = std::min(kMaxSegments, num_segments - begin);
    const cudaError_t error = launch_table<kPack, kSumsq, Wire, kMaxSegments>(segments + begin, count, flat, scale, counters, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <bool kPack, bool kSumsq>
cudaError_t launch(const Segment* segments, int num_segments, void* flat, Dtype wire_dtype, float scale, const Counters& counters,
                   void* stream) {
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  return wire_dtype == Dtype::f16 ? launch_sized<kPack, kSumsq, __half>(segments, num_segments, flat, scale, counters, cuda_stream)
                                  : launch_sized<kPack, kSumsq, __nv_bfloat16>(segments, num_segments, flat, scale, counters, cuda_stream);
}

}  // namespace

int launch_pack(const Segment* segments, int num_segments, void* flat, Dtype wire_dtype, float scale, Counters counters, void* stream) {
  return launch<true, false>(segments, num_segments, flat, wire_dtype, scale, counters, stream);
}

int launch_unpack(const Segment* segments, int num_segments, const void* flat, Dtype wire_dtype, float scale, Counters counters,
                  void* stream) {
  auto* const wire = const_cast<void*>(flat);  // only read
  return counters.sumsq == nullptr ? launch<false, false>(segments, num_segments, wire, wire_dtype, scale, counters, stream)
                                   : launch<false, true>(segments, num_segments, wire, wire_dtype, scale, counters, stream);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace gpualloc::cuda
