#include "rehearsal/device_lane.h"

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cmath>
#include <map>
#include <mutex>

#ifdef GPUALLOC_CUDA
#include "kernels/convert.h"
#include "kernels/hold.h"
#endif

namespace gpualloc::rehearsal {

#ifdef GPUALLOC_CUDA
namespace {

void* native(const c10::Stream& stream) { return c10::impl::VirtualGuardImpl(at::kCUDA).getStreamNativeHandle(stream); }

void check(int error, const char* name, const c10::Stream& stream) {
  TORCH_CHECK(error == 0, "gpualloc: ", name, " on ", stream.device(), " failed: ", cuda::error_text(error));
}

at::Tensor links_of(c10::Device device) {
  static std::mutex mutex;
  static auto* const links = new std::map<c10::DeviceIndex, at::Tensor>;  // never destroyed: CUDA may be gone first
  const std::lock_guard<std::mutex> lock(mutex);
  at::Tensor& known = (*links)[device.index()];
  if (!known.defined()) {
    known = at::zeros({kNumLinks, 2}, at::TensorOptions().dtype(at::kInt).device(device));
    const c10::impl::VirtualGuardImpl streams(at::kCUDA);
    streams.synchronizeStream(streams.getStream(device));
  }
  return known;
}

}  // namespace

DeviceLane::DeviceLane(c10::Device device)
    : stream_(c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(device, false)), links_(links_of(device)) {
  const c10::StreamGuard guard(stream_);
  start_ = at::zeros({1}, at::TensorOptions().dtype(at::kLong).device(device));
}

void DeviceLane::mark_start() { check(cuda::launch_mark_start(start_.data_ptr<int64_t>(), native(stream_)), "mark_start", stream_); }

void DeviceLane::hold(const Traffic& traffic) {
  auto* const links = reinterpret_cast<cuda::DeviceLink*>(links_.data_ptr<int>());
  const Cost& cost = traffic.cost;
  const cuda::Hold hold{std::llround(cost.latency_s * 1e9), std::llround(cost.transfer_s * 1e9),
                        static_cast<int>(std::lround(cost.demand * cuda::kFullLink)), traffic.out, traffic.in};
  check(cuda::launch_hold(start_.data_ptr<int64_t>(), links + traffic.link, hold, native(stream_)), "hold", stream_);
}

#else

DeviceLane::DeviceLane(c10::Device device) : stream_(c10::Stream::DEFAULT, device) {
  TORCH_CHECK(false, "gpualloc: this build has no CUDA half, so collectives on ", device, " cannot be rehearsed; install gpualloc where nvcc is");
}
void DeviceLane::mark_start() {}
void DeviceLane::hold(const Traffic&) {}

#endif

}  // namespace gpualloc::rehearsal
