// pack and unpack on CUDA: current stream and device from torch, the work in kernels/convert.cu. Free of CUDA headers.
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>
#include <utility>

#include "kernels/convert.h"
#include "ops.h"

namespace gpualloc {
namespace {

// Scratch for the sum of squares, made at the first call on a stream and kept: kernels on one stream run in turn. Never
// freed, because at exit the CUDA driver may be gone before a static destructor runs.
void* workspace_of(c10::Stream stream) {
  static std::mutex mutex;
  static auto* const workspaces = new std::map<std::pair<c10::DeviceIndex, c10::StreamId>, at::Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  at::Tensor& workspace = (*workspaces)[{stream.device_index(), stream.id()}];
  if (!workspace.defined()) {
    workspace = at::zeros({cuda::kWorkspaceBytes}, at::TensorOptions().dtype(at::kByte).device(stream.device()));
  }
  return workspace.data_ptr();
}

template <typename Launch>
void launch_on_current_stream(const char* name, const Segments& segments, const at::Tensor& flat, float scale,
                              const CounterTensors& counters, const Launch& launch) {
  const c10::DeviceGuard guard(flat.device());
  const c10::impl::VirtualGuardImpl streams(at::kCUDA);
  const c10::Stream stream = streams.getStream(flat.device());
  cuda::Counters raw;
  if (counters.nonfinite.has_value()) raw.nonfinite = counters.nonfinite->data_ptr<int64_t>();
  if (counters.sumsq.has_value()) {
    raw.sumsq = counters.sumsq->data_ptr<double>();
    raw.workspace = workspace_of(stream);
  }
  const Dtype wire_dtype = flat.scalar_type() == at::kHalf ? Dtype::f16 : Dtype::bf16;
  const int error = launch(segments.data(), static_cast<int>(segments.size()), flat.data_ptr(), wire_dtype, scale, raw,
                           streams.getStreamNativeHandle(stream));
  TORCH_CHECK(error == 0, "gpualloc::", name, ": launch on ", flat.device(), " failed: ", cuda::error_text(error));
}

}  // namespace

void pack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const CounterTensors& counters) {
  launch_on_current_stream("pack", segments, flat, scale, counters, cuda::launch_pack);
}

void unpack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const CounterTensors& counters) {
  launch_on_current_stream("unpack", segments, flat, scale, counters, cuda::launch_unpack);
}

}  // namespace gpualloc
