#include "exchange.h"

#include <cstdint>

namespace gpualloc {

void check_world_size(int64_t world_size) {
  TORCH_CHECK_VALUE(world_size >= 1, "world_size: expected 1 or more, got ", world_size);
  TORCH_CHECK_VALUE(world_size <= kMaxWorldSize, "world_size: expected ", kMaxWorldSize, " or less, got ", world_size);
}

void check_numel(int64_t numel, const char* argument) {
  TORCH_CHECK_VALUE(numel >= 0 && numel <= kMaxNumel, argument, ": expected 0 to ", kMaxNumel, " elements, got ", numel);
}

namespace {

void check_dtype(const at::Tensor& tensor, at::ScalarType dtype, const char* argument) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, argument, ": expected ", dtype, ", got ", tensor.scalar_type());
}

Dtype half_dtype(const at::Tensor& tensor, const char* argument) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16, argument,
                   ": expected float16 or bfloat16, got ", tensor.scalar_type());
  return tensor.scalar_type() == at::kHalf ? Dtype::f16 : Dtype::bf16;
}

// Contiguous, of `numel` elements, on `device`.
void check_memory(const at::Tensor& tensor, int64_t numel, at::Device device, const char* argument) {
  TORCH_CHECK_VALUE(tensor.device() == device, argument, ": expected on ", device, " like the other tensors, got ", tensor.device());
  TORCH_CHECK_VALUE(tensor.is_contiguous() && tensor.numel() == numel, argument, ": expected ", numel, " contiguous elements, got shape ",
                    tensor.sizes(), " strides ", tensor.strides());
  check_has_memory(tensor, argument);
}

void check_int8(const at::Tensor& tensor, int64_t num_bytes, at::Device device, const char* argument) {
  check_dtype(tensor, at::kByte, argument);
  check_memory(tensor, num_bytes, device, argument);
  TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, argument,
                    ": expected memory at a multiple of 16 bytes, got storage offset ", tensor.storage_offset());
}

void check_counter(const std::optional<at::Tensor>& counter, at::ScalarType dtype, at::Device device, const char* argument) {
  if (!counter.has_value()) return;
  check_dtype(*counter, dtype, argument);
  check_memory(*counter, 1, device, argument);
}

// The memory of an FP32 tensor that may be absent.
float* floats_of(const std::optional<at::Tensor>& tensor, int64_t numel, at::Device device, const char* argument) {
  if (!tensor.has_value()) return nullptr;
  check_dtype(*tensor, at::kFloat, argument);
  check_memory(*tensor, numel, device, argument);
  return tensor->data_ptr<float>();
}

#ifdef GPUALLOC_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

void check_cpu(at::Device device, const char* name) {
  TORCH_CHECK_NOT_IMPLEMENTED(device.is_cpu(), "gpualloc::", name, ": ",
                              kHasCuda ? "expected tensors on the CPU or CUDA" : "this build has CPU kernels only", ", got tensors on ", device,
                              device.is_cuda() ? "; install the CUDA toolkit of torch's version and reinstall gpualloc" : "");
}

}  // namespace

void sum_shards(const at::Tensor& shards, const at::Tensor& out, const std::optional<at::Tensor>& error) {
  const at::Device device = out.device();
  const Dtype dtype = half_dtype(out, "out");
  check_dtype(shards, out.scalar_type(), "shards");
  check_memory(out, out.numel(), device, "out");
  check_memory(shards, shards.numel(), device, "shards");
  float* const error_data = floats_of(error, out.numel(), device, "error");
  if (shards.numel() == 0 && out.numel() == 0) return;
  TORCH_CHECK_VALUE(out.numel() > 0 && shards.numel() > 0 && shards.numel() % out.numel() == 0,
                    "shards: expected one or more shards of out's ", out.numel(), " elements, got ", shards.numel(), " elements");
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return sum_shards_cuda(shards, out, dtype, error_data);
  }
  check_cpu(device, "sum_shards");
  sum_shards_cpu(shards, out, dtype, error_data);
}

void quantize(const at::Tensor& source, const at::Tensor& wire, int64_t world_size, double scale,
              const std::optional<at::Tensor>& residual) {
  const at::Device device = source.device();
  const int64_t numel = source.numel();
  check_world_size(world_size);
  check_dtype(source, at::kFloat, "source");
  check_memory(source, numel, device, "source");
  check_int8(wire, world_size * int8_shard_bytes(shard_numel(numel, world_size)), device, "wire");
  float* const residual_data = floats_of(residual, numel, device, "residual");
  if (numel == 0) return;
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return quantize_cuda(source, wire, world_size, static_cast<float>(scale), residual_data);
  }
  check_cpu(device, "quantize");
  quantize_cpu(source, wire, world_size, static_cast<float>(scale), residual_data);
}

void reduce_int8(const at::Tensor& shards, const at::Tensor& out, int64_t world_size, const std::optional<at::Tensor>& error) {
  const at::Device device = out.device();
  const int64_t shard = out.numel() / int8_shard_bytes(kShardAlign) * kShardAlign;
  check_world_size(world_size);
  TORCH_CHECK_VALUE(int8_shard_bytes(shard) == out.numel(), "out: expected int8_shard_bytes(S) bytes, a multiple of ",
                    int8_shard_bytes(kShardAlign), ", got ", out.numel());
  check_int8(out, out.numel(), device, "out");
  check_int8(shards, world_size * out.numel(), device, "shards");
  float* const error_data = floats_of(error, shard, device, "error");
  if (shard == 0) return;
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return reduce_int8_cuda(shards, out, shard, world_size, error_data);
  }
  check_cpu(device, "reduce_int8");
  reduce_int8_cpu(shards, out, shard, world_size, error_data);
}

void dequantize(const at::Tensor& wire, const at::Tensor& target, int64_t world_size, const Counters& counters) {
  const at::Device device = target.device();
  const int64_t numel = target.numel();
  check_world_size(world_size);
  check_dtype(target, at::kFloat, "target");
  check_memory(target, numel, device, "target");
  check_int8(wire, world_size * int8_shard_bytes(shard_numel(numel, world_size)), device, "wire");
  check_counter(counters.nonfinite, at::kLong, device, "nonfinite");
  check_counter(counters.sumsq, at::kDouble, device, "sumsq");
  if (numel == 0) return;
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return dequantize_cuda(wire, target, world_size, counters);
  }
  check_cpu(device, "dequantize");
  dequantize_cpu(wire, target, world_size, counters);
}

void pack_with_feedback(const at::Tensor& source, const at::Tensor& wire, double scale, const at::Tensor& residual) {
  const at::Device device = source.device();
  const int64_t numel = source.numel();
  check_dtype(source, at::kFloat, "source");
  check_memory(source, numel, device, "source");
  const Dtype wire_dtype = half_dtype(wire, "wire");
  check_memory(wire, numel, device, "wire");
  float* const residual_data = floats_of(residual, numel, device, "residual");
  if (numel == 0) return;
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return pack_with_feedback_cuda(source, wire, wire_dtype, static_cast<float>(scale), residual_data);
  }
  check_cpu(device, "pack_with_feedback");
  pack_with_feedback_cpu(source, wire, wire_dtype, static_cast<float>(scale), residual_data);
}

}  // namespace gpualloc
