// What pack and unpack compute, and the plain types they are described with. No torch, no CUDA.
//
//   pack:    flat[i]      = narrow(float(tensor[j]) * scale)      flat is FP16 or BF16
//   unpack:  tensor[j]    = convert(float(flat[i]) * scale)
//
// i counts elements of the flat buffer, j elements of one tensor in its own memory order; the tensors follow each other
// without gaps. The multiplication is in FP32; an FP64 gradient is first rounded to FP32. Non-finite results are those
// that are inf or NaN *after* the last rounding.
#pragma once

#include <cstdint>

namespace gpualloc {

enum class Dtype : int32_t { f32, f16, bf16, f64 };

constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// One tensor and where it lies in the flat buffer.
struct Segment {
  void* data;
  int64_t begin;  // first element in the flat buffer
  int64_t numel;
  Dtype dtype;
};

}  // namespace gpualloc
