// The gradient exchange on CUDA: current stream and device from torch, the work in kernels/exchange.cu. Free of CUDA headers.
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "exchange.h"
#include "kernels/exchange.h"
#include "sum_workspace.h"

namespace gpualloc {
namespace {

// Calls launch(stream, its native handle) for the current stream of the device.
template <typename Launch>
void on_current_stream(const char* name, at::Device device, const Launch& launch) {
  const c10::DeviceGuard guard(device);
  const c10::impl::VirtualGuardImpl streams(at::kCUDA);
  const c10::Stream stream = streams.getStream(device);
  const int error = launch(stream, streams.getStreamNativeHandle(stream));
  TORCH_CHECK(error == 0, "gpualloc::", name, ": launch on ", device, " failed: ", cuda::error_text(error));
}

}  // namespace

void sum_shards_cuda(const at::Tensor& shards, const at::Tensor& out, Dtype dtype, float* error) {
  on_current_stream("sum_shards", out.device(), [&](c10::Stream, void* stream) {
    return cuda::launch_sum_shards(shards.data_ptr(), shards.numel() / out.numel(), out.data_ptr(), dtype, out.numel(), error, stream);
  });
}

void quantize_cuda(const at::Tensor& source, const at::Tensor& wire, int64_t world_size, float scale, float* residual) {
  on_current_stream("quantize", source.device(), [&](c10::Stream, void* stream) {
    return cuda::launch_quantize(source.data_ptr<float>(), source.numel(), scale, residual, wire.data_ptr<uint8_t>(), world_size, stream);
  });
}

void reduce_int8_cuda(const at::Tensor& shards, const at::Tensor& out, int64_t shard_numel, int64_t world_size, float* error) {
  on_current_stream("reduce_int8", out.device(), [&](c10::Stream, void* stream) {
    return cuda::launch_reduce_int8(shards.data_ptr<uint8_t>(), shard_numel, world_size, out.data_ptr<uint8_t>(), error, stream);
  });
}

void dequantize_cuda(const at::Tensor& wire, const at::Tensor& target, int64_t world_size, const Counters& counters) {
  on_current_stream("dequantize", target.device(), [&](c10::Stream stream, void* native_stream) {
    cuda::Counters raw;
    if (counters.nonfinite.has_value()) raw.nonfinite = counters.nonfinite->data_ptr<int64_t>();
    if (counters.sumsq.has_value()) {
      raw.sumsq = counters.sumsq->data_ptr<double>();
      raw.workspace = sum_workspace(stream, cuda::dequantize_chunks(target.numel(), world_size));
    }
    return cuda::launch_dequantize(wire.data_ptr<uint8_t>(), target.data_ptr<float>(), target.numel(), world_size, raw, native_stream);
  });
}

void pack_with_feedback_cuda(const at::Tensor& source, const at::Tensor& wire, Dtype wire_dtype, float scale, float* residual) {
  on_current_stream("pack_with_feedback", source.device(), [&](c10::Stream, void* stream) {
    return cuda::launch_pack_with_feedback(source.data_ptr<float>(), scale, residual, wire.data_ptr(), wire_dtype, source.numel(), stream);
  });
}

}  // namespace gpualloc
