// pack and unpack on CUDA: current stream and device from torch, the work in kernels/convert.cu. Free of CUDA headers.
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "kernels/convert.h"
#include "ops.h"
#include "sum_workspace.h"

namespace gpualloc {
namespace {

template <typename Launch>
void launch_on_current_stream(const char* name, const Segments& segments, const at::Tensor& flat, float scale,
                              const Counters& counters, const Launch& launch) {
  const c10::DeviceGuard guard(flat.device());
  const c10::impl::VirtualGuardImpl streams(at::kCUDA);
  const c10::Stream stream = streams.getStream(flat.device());
  cuda::Counters raw;
  if (counters.nonfinite.has_value()) raw.nonfinite = counters.nonfinite->data_ptr<int64_t>();
  if (counters.wire_state.has_value()) raw.wire = reinterpret_cast<WireState*>(counters.wire_state->data_ptr<float>());
  if (counters.sumsq.has_value()) {
    raw.sumsq = counters.sumsq->data_ptr<double>();
    raw.workspace = sum_workspace(stream, cuda::chunks_for(segments.data(), static_cast<int>(segments.size())));
  }
  const Dtype wire_dtype = flat.scalar_type() == at::kHalf ? Dtype::f16 : Dtype::bf16;
  const int error = launch(segments.data(), static_cast<int>(segments.size()), flat.data_ptr(), wire_dtype, scale, raw,
                           streams.getStreamNativeHandle(stream));
  TORCH_CHECK(error == 0, "gpualloc::", name, ": launch on ", flat.device(), " failed: ", cuda::error_text(error));
}

}  // namespace

void pack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters) {
  launch_on_current_stream("pack", segments, flat, scale, counters, cuda::launch_pack);
}

void unpack_cuda(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters) {
  launch_on_current_stream("unpack", segments, flat, scale, counters, cuda::launch_unpack);
}

void update_cuda(const at::Tensor& wire_state, const at::Tensor& agreed, const at::Tensor& nonfinite) {
  const c10::DeviceGuard guard(wire_state.device());
  const c10::impl::VirtualGuardImpl streams(at::kCUDA);
  auto* const state = reinterpret_cast<WireState*>(wire_state.data_ptr<float>());
  const int error = cuda::launch_update(state, agreed.data_ptr<float>(), nonfinite.data_ptr<int64_t>(),
                                        streams.getStreamNativeHandle(streams.getStream(wire_state.device())));
  TORCH_CHECK(error == 0, "gpualloc: updating the wire scale on ", wire_state.device(), " failed: ", cuda::error_text(error));
}

}  // namespace gpualloc
