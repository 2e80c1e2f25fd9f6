// Holds a stream for the time that a modelled transfer takes: one thread that sleeps, so that all but a sliver of one SM stays free.
//
//   start      globaltimer when the stream reached the collective; work on its tensors lies between start and hold
//   end        when latency has passed and transfer_ns, at the rate 1 / max(1, load of a direction it uses), have been moved
#include "kernels/hold.h"

#include <cuda_runtime.h>

namespace gpualloc::cuda {
namespace {

constexpr unsigned kSleep_ns = 500;  // the timer itself moves in steps of up to a microsecond

__device__ int64_t timer_ns() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void mark_start_kernel(int64_t* start_ns) { *start_ns = timer_ns(); }

__global__ void hold_kernel(const int64_t* __restrict__ start_ns, DeviceLink* link, Hold hold) {
  const int64_t moves_from_ns = *start_ns + hold.latency_ns;
  int64_t now_ns = timer_ns();
  for (; now_ns < moves_from_ns; now_ns = timer_ns()) __nanosleep(kSleep_ns);
  if (hold.transfer_ns == 0) return;
  if (hold.out) atomicAdd(&link->load[0], hold.demand);
  if (hold.in) atomicAdd(&link->load[1], hold.demand);
  double remaining_ns = static_cast<double>(hold.transfer_ns);
  int64_t last_ns = moves_from_ns;
  while (true) {
    const int out = hold.out ? atomicAdd(&link->load[0], 0) : 0, in = hold.in ? atomicAdd(&link->load[1], 0) : 0;
    const int load = max(kFullLink, max(out, in));
    remaining_ns -= static_cast<double>(now_ns - last_ns) * kFullLink / load;
    if (remaining_ns <= 0) break;
    last_ns = now_ns;
    __nanosleep(kSleep_ns);
    now_ns = timer_ns();
  }
  if (hold.out) atomicSub(&link->load[0], hold.demand);
  if (hold.in) atomicSub(&link->load[1], hold.demand);
}

}  // namespace

int launch_mark_start(int64_t* start_ns, void* stream) {
  mark_start_kernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(start_ns);
  return cudaGetLastError();
}

int launch_hold(const int64_t* start_ns, DeviceLink* link, const Hold& hold, void* stream) {
  hold_kernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(start_ns, link, hold);
  return cudaGetLastError();
}

}  // namespace gpualloc::cuda
