#include "ops.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "segment.h"
#include "wire_scale.h"

namespace gpualloc {

void check_has_memory(const at::Tensor& tensor, const char* argument) {
  TORCH_CHECK_VALUE(!tensor.is_neg(), argument, ": expected a tensor, got a negative view of one; pass tensor.resolve_neg()");
  TORCH_CHECK_VALUE(!tensor._is_zerotensor(), argument, ": expected a tensor with memory, got one of zeros that has none; pass tensor.clone()");
  if (tensor.numel() == 0 || tensor.is_meta()) return;
  const size_t need = static_cast<size_t>(tensor.storage_offset() + tensor.numel()) * tensor.itemsize(), has = tensor.storage().nbytes();
  TORCH_CHECK_VALUE(has >= need && tensor.const_data_ptr() != nullptr, argument, ": expected memory of ", need, " bytes, got a tensor of shape ",
                    tensor.sizes(), " whose storage holds ", tensor.const_data_ptr() == nullptr ? 0 : has);
}

namespace {

constexpr int64_t kWireStateNumel = sizeof(WireState) / sizeof(float);

Dtype dtype_of(const at::Tensor& tensor, const char* argument) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kHalf: return Dtype::f16;
    case at::kBFloat16: return Dtype::bf16;
    case at::kDouble: return Dtype::f64;
    default: TORCH_CHECK_TYPE(false, argument, ": expected float32, float16, bfloat16 or float64, got ", tensor.scalar_type());
  }
}

void check_flat(const at::Tensor& flat, const char* argument) {
  TORCH_CHECK_TYPE(flat.scalar_type() == at::kHalf || flat.scalar_type() == at::kBFloat16, argument,
                   ": expected float16 or bfloat16, got ", flat.scalar_type());
  TORCH_CHECK_VALUE(flat.dim() == 1 && flat.is_contiguous(), argument, ": expected a contiguous 1-D tensor, got shape ", flat.sizes(),
                    " strides ", flat.strides());
  check_has_memory(flat, argument);
}

void check_counter(const std::optional<at::Tensor>& counter, at::ScalarType dtype, at::Device device, const char* argument, int64_t numel = 1) {
  if (!counter.has_value()) return;
  TORCH_CHECK_TYPE(counter->scalar_type() == dtype, argument, ": expected ", dtype, ", got ", counter->scalar_type());
  TORCH_CHECK_VALUE(counter->numel() == numel && counter->is_contiguous(), argument, ": expected ", numel, " contiguous element(s), got shape ",
                    counter->sizes(), " strides ", counter->strides());
  TORCH_CHECK_VALUE(counter->device() == device, argument, ": expected on ", device, " like the flat buffer, got ", counter->device());
  check_has_memory(*counter, argument);
}

void check_pack(const at::Tensor& flat, const Counters& counters) {
  check_flat(flat, "out");
  check_counter(counters.nonfinite, at::kLong, flat.device(), "nonfinite");
  check_counter(counters.wire_state, at::kFloat, flat.device(), "wire_state", kWireStateNumel);
}

void check_unpack(const at::Tensor& flat, const Counters& counters) {
  check_flat(flat, "flat");
  check_counter(counters.sumsq, at::kDouble, flat.device(), "sumsq");
  check_counter(counters.nonfinite, at::kLong, flat.device(), "nonfinite");
  check_counter(counters.wire_state, at::kFloat, flat.device(), "wire_state", kWireStateNumel);
}

Segments segments_of(at::TensorList tensors, const at::Tensor& flat) {
  c10::SmallVector<const at::Tensor*, 8> pointers;
  pointers.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) pointers.push_back(&tensor);
  return gpualloc::segments_of(c10::ArrayRef<const at::Tensor*>(pointers), flat);
}

}  // namespace

Segments segments_of(c10::ArrayRef<const at::Tensor*> tensors, const at::Tensor& flat) {
  Segments segments(tensors.size());
  int64_t begin = 0;
  for (size_t k = 0; k < tensors.size(); ++k) {
    const at::Tensor& tensor = *tensors[k];
    TORCH_CHECK_VALUE(tensor.device() == flat.device(), "tensors[", k, "]: expected on ", flat.device(), " like the flat buffer, got ",
                      tensor.device());
    TORCH_CHECK_VALUE(tensor.is_non_overlapping_and_dense(), "tensors[", k,
                      "]: expected dense memory (contiguous or channels-last), got shape ", tensor.sizes(), " strides ", tensor.strides(),
                      "; pass tensor.contiguous()");
    check_has_memory(tensor, "tensors");
    segments[k] = {tensor.data_ptr(), begin, tensor.numel(), dtype_of(tensor, "tensors")};
    begin += segments[k].numel;
  }
  TORCH_CHECK_VALUE(begin == flat.numel(), "flat: expected ", begin, " elements, the sum over the tensors, got ", flat.numel());
  return segments;
}

bool has_kernels(at::DeviceType device) {
#ifdef GPUALLOC_CUDA
  return device == at::kCPU || device == at::kCUDA;
#else
  return device == at::kCPU;
#endif
}

void pack(at::TensorList tensors, const at::Tensor& flat, double scale, const Counters& counters) {
  const Segments segments = segments_of(tensors, flat);
  if (has_kernels(flat.device().type())) return pack(segments, flat, scale, counters);
  check_pack(flat, counters);
  pack_aten(tensors, flat, scale, counters);
}

void pack(const Segments& segments, const at::Tensor& flat, double scale, const Counters& counters) {
  check_pack(flat, counters);
  if (flat.numel() == 0) return;
#ifdef GPUALLOC_CUDA
  if (flat.is_cuda()) return pack_cuda(segments, flat, static_cast<float>(scale), counters);
#endif
  pack_cpu(segments, flat, static_cast<float>(scale), counters);
}

void unpack(const at::Tensor& flat, at::TensorList tensors, double scale, const Counters& counters) {
  const Segments segments = segments_of(tensors, flat);
  if (has_kernels(flat.device().type())) return unpack(flat, segments, scale, counters);
  check_unpack(flat, counters);
  unpack_aten(tensors, flat, scale, counters);
}

void unpack(const at::Tensor& flat, const Segments& segments, double scale, const Counters& counters) {
  check_unpack(flat, counters);
  if (flat.numel() == 0) return;
#ifdef GPUALLOC_CUDA
  if (flat.is_cuda()) return unpack_cuda(segments, flat, static_cast<float>(scale), counters);
#endif
  unpack_cpu(segments, flat, static_cast<float>(scale), counters);
}

at::Tensor make_wire_state(at::Device device, float scale, int world_size, bool started) {
  int exponent;
  TORCH_CHECK_VALUE(std::frexp(scale, &exponent) == 0.5f && scale >= kMinScale && scale <= kMaxScale,
                    "wire scale: expected a power of two from 2**-24 to 2**24, got ", scale);
  const at::Tensor host = at::empty({kWireStateNumel}, at::kFloat);
  *reinterpret_cast<WireState*>(host.data_ptr<float>()) = first_state(scale, world_size, started);
  return host.to(device);
}

void update_wire_state(const at::Tensor& wire_state, const at::Tensor& agreed, const at::Tensor& nonfinite) {
  check_counter(wire_state, at::kFloat, wire_state.device(), "wire_state", kWireStateNumel);
  check_counter(agreed, at::kFloat, wire_state.device(), "agreed", 2);
  check_counter(nonfinite, at::kLong, wire_state.device(), "nonfinite");
#ifdef GPUALLOC_CUDA
  if (wire_state.is_cuda()) return update_cuda(wire_state, agreed, nonfinite);
#endif
  const at::Tensor host = wire_state.cpu();  // itself on the CPU; a device without kernels is waited for
  auto* const state = reinterpret_cast<WireState*>(host.data_ptr<float>());
  const at::Tensor figures = agreed.cpu();
  const float absmax = figures.data_ptr<float>()[0], saturated = figures.data_ptr<float>()[1];
  *state = next_state(*state, absmax, saturated != 0, nonfinite.item<int64_t>() != 0);
  if (!wire_state.is_cpu()) wire_state.copy_(host);
}

namespace {

using Counter = std::optional<at::Tensor>;

void pack_op(at::TensorList tensors, const at::Tensor& out, double scale, const Counter& nonfinite) {
  pack(tensors, out, scale, {nonfinite, {}, {}});
}

void unpack_op(const at::Tensor& flat, at::TensorList tensors, double scale, const Counter& sumsq, const Counter& nonfinite) {
  unpack(flat, tensors, scale, {nonfinite, sumsq, {}});
}

void pack_flat_op(const at::Tensor& buffer, const at::Tensor& out, double scale, const Counter& nonfinite) {
  pack(buffer, out, scale, {nonfinite, {}, {}});
}

void unpack_flat_op(const at::Tensor& flat, const at::Tensor& buffer, double scale, const Counter& sumsq, const Counter& nonfinite) {
  unpack(flat, buffer, scale, {nonfinite, sumsq, {}});
}

void register_fallthroughs(torch::Library& library) {
  for (const char* name : {"pack", "unpack", "pack_flat", "unpack_flat"}) library.impl(name, torch::CppFunction::makeFallthrough());
}

}  // namespace
}  // namespace gpualloc

TORCH_LIBRARY(gpualloc, library) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def("pack(Tensor[] tensors, Tensor(a!) out, float scale=1.0, *, Tensor(b!)? nonfinite=None) -> ()", tags);
  library.def(
      "unpack(Tensor flat, Tensor(a!)[] tensors, float scale=1.0, *, Tensor(b!)? sumsq=None, Tensor(c!)? nonfinite=None) -> ()", tags);
  library.def("pack_flat(Tensor buffer, Tensor(a!) out, float scale=1.0, *, Tensor(b!)? nonfinite=None) -> ()", tags);
  library.def(
      "unpack_flat(Tensor flat, Tensor(a!) buffer, float scale=1.0, *, Tensor(b!)? sumsq=None, Tensor(c!)? nonfinite=None) -> ()", tags);
}

TORCH_LIBRARY_IMPL(gpualloc, CompositeExplicitAutograd, library) {
  library.impl("pack", gpualloc::pack_op);
  library.impl("unpack", gpualloc::unpack_op);
  library.impl("pack_flat", gpualloc::pack_flat_op);
  library.impl("unpack_flat", gpualloc::unpack_flat_op);
}

// The views that check_has_memory() refuses go past torch's fallbacks for them. That for negative views expects a result for each argument
// that is changed: of operations that return nothing it takes what lies below the end of its stack, and memory was lost or freed twice.
TORCH_LIBRARY_IMPL(gpualloc, Negative, library) { gpualloc::register_fallthroughs(library); }
TORCH_LIBRARY_IMPL(gpualloc, Conjugate, library) { gpualloc::register_fallthroughs(library); }
TORCH_LIBRARY_IMPL(gpualloc, ZeroTensor, library) { gpualloc::register_fallthroughs(library); }
