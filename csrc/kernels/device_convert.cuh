// Device code that several kernel files use: conversions of one element, vector accesses, the sum of squares.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/convert.h"

namespace gpualloc::cuda {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads == 32 * kWarpsPerChunk && kWarpsPerChunk % 4 == 0);

// --- one element ------------------------------------------------------------------------------------------------------

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

// Adds what the lanes of a warp counted to *counter, unless null.
__device__ void add_nonfinite(unsigned count, int64_t* counter) {
  if (counter == nullptr || !__any_sync(0xffffffffu, count != 0)) return;  // so rare that an atomic a warp is cheap
  for (int step = 16; step > 0; step /= 2) count += __shfl_down_sync(0xffffffffu, count, step);
  if (threadIdx.x % 32 == 0) atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(count));
}

// A thread's access.
template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T lane[kVector];
};

template <typename T>
__device__ bool is_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(T) == 0;
}

// --- the sum of squares: always in the same order, so the same bits from run to run -----------------------------------------

__device__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  return value;  // in lane 0
}

// The sum over the block, valid in thread 0.
__device__ double block_sum(double value) {
  __shared__ double warp_sums[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (const double sum : warp_sums) total += sum;
  }
  __syncthreads();  // warp_sums may be written again
  return total;
}

struct Workspace {
  unsigned* ticket;
  double* block_sums;
  float* warp_sums;
};

__host__ __device__ Workspace layout(void* memory) {
  auto* const block_sums = reinterpret_cast<double*>(static_cast<char*>(memory) + 16);
  return {static_cast<unsigned*>(memory), block_sums, reinterpret_cast<float*>(block_sums + kSumBlocks)};
}

// In a kernel that leaves warp sums: lets sum_kernel take the places that its last blocks leave free, and wait there.
__device__ void let_sum_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Adds warp_sums[0 .. 4 * count4) to *sumsq: every block sums one stretch, the last block to finish sums the blocks.
__global__ void __launch_bounds__(kThreads) sum_kernel(const Workspace workspace, int64_t count4, double* sumsq) {
  __shared__ bool is_last;
  const int64_t stretch = (count4 + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * stretch;
  const int64_t end = begin + stretch < count4 ? begin + stretch : count4;
  const auto* const sums = reinterpret_cast<const float4*>(workspace.warp_sums);
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  double own = 0;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float4 four = sums[i];
    own += (static_cast<double>(four.x) + four.y) + (static_cast<double>(four.z) + four.w);
  }
  const double sum = block_sum(own);
  if (threadIdx.x == 0) {
    workspace.block_sums[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicAdd(workspace.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  own = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) own += __ldcg(workspace.block_sums + block);
  const double total = block_sum(own);
  if (threadIdx.x == 0) {
    *sumsq += total;
    *workspace.ticket = 0;
  }
}

// Adds the warp sums of all chunks to *counters.sumsq. From Hopper on the launch overlaps the end of the kernel before it.
cudaError_t launch_sum(const Counters& counters, int64_t chunks, cudaStream_t stream) {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  const int64_t count4 = chunks * kWarpsPerChunk / 4;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(std::min<int64_t>(kSumBlocks, (count4 + kThreads - 1) / kThreads));
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, sum_kernel, layout(counters.workspace), count4, counters.sumsq);
}

}  // namespace
}  // namespace gpualloc::cuda
