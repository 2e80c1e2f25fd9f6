// The loops behind Exchangers, written once over a vector type (lane.h says what it has); exchange_<isa>.cpp defines `Vector`.
// FP32 operations in the order that csrc/exchange.h gives, none of them fused: compile with -ffp-contract=off.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/exchange.h"
#include "cpu/lane.h"

namespace gpualloc::cpu {
namespace {

// Elements whose FP32 sum over the shards is kept in the L1 cache: each shard is read in stretches of this, not one vector
// here and one there, because shards lie multiples of 2 KiB apart and would push each other out of the cache.
constexpr int64_t kStage = kShardAlign;

// Calls body(V(), i) for i = 0 .. numel, V being Vector as long as whole ones fit, then Lane.
template <typename Body>
void for_each(int64_t numel, const Body& body) {
  int64_t i = 0;
  for (; i + Vector::kWidth <= numel; i += Vector::kWidth) body(Vector(), i);
  for (; i < numel; ++i) body(Lane(), i);
}

// --- 16 bits ----------------------------------------------------------------------------------------------------------

// *to = narrow(value); *lost = value - float(*to), unless null.
template <Dtype D, typename V>
void narrow_and_keep(V value, uint16_t* to, float* lost) {
  value.template store<D>(to);
  if (lost != nullptr) (value - V::template load<D>(to)).finite_or_zero().template store<Dtype::f32>(lost);
}

template <Dtype D, bool kError>
void sum_shards(const uint16_t* shards, int64_t stride, int64_t world_size, uint16_t* out, int64_t numel, float* error) {
  alignas(64) float sum[kStage];
  for (int64_t begin = 0; begin < numel; begin += kStage) {
    const int64_t count = std::min(kStage, numel - begin);
    for (int64_t r = 0; r + 1 < world_size; ++r) {
      const uint16_t* const from = shards + r * stride + begin;
      for_each(count, [&](auto zero, int64_t i) {
        using V = decltype(zero);
        const V value = V::template load<D>(from + i);
        (r == 0 ? value : V::template load<Dtype::f32>(sum + i) + value).template store<Dtype::f32>(sum + i);
      });
    }
    const uint16_t* const last = shards + (world_size - 1) * stride + begin;
    for_each(count, [&](auto zero, int64_t i) {
      using V = decltype(zero);
      V value = V::template load<D>(last + i);
      if (world_size > 1) value = V::template load<Dtype::f32>(sum + i) + value;
      if constexpr (kError) value = value + V::template load<Dtype::f32>(error + begin + i);
      narrow_and_keep<D>(value, out + begin + i, kError ? error + begin + i : nullptr);
    });
  }
}

template <Dtype D>
void pack_with_feedback(const float* source, float scale, float* residual, uint16_t* wire, int64_t numel) {
  for_each(numel, [&](auto zero, int64_t i) {
    using V = decltype(zero);
    const V value = V::template load<Dtype::f32>(source + i) * V::all(scale) + V::template load<Dtype::f32>(residual + i);
    narrow_and_keep<D>(value, wire + i, residual + i);
  });
}

void sum_shards_loop(const uint16_t* shards, int64_t stride, int64_t world_size, uint16_t* out, Dtype dtype, int64_t numel, float* error) {
  const auto run = dtype == Dtype::f16 ? (error != nullptr ? sum_shards<Dtype::f16, true> : sum_shards<Dtype::f16, false>)
                                       : (error != nullptr ? sum_shards<Dtype::bf16, true> : sum_shards<Dtype::bf16, false>);
  run(shards, stride, world_size, out, numel, error);
}

void pack_with_feedback_loop(const float* source, float scale, float* residual, uint16_t* wire, Dtype wire_dtype, int64_t numel) {
  const auto run = wire_dtype == Dtype::f16 ? pack_with_feedback<Dtype::f16> : pack_with_feedback<Dtype::bf16>;
  run(source, scale, residual, wire, numel);
}

// --- 8 bits -----------------------------------------------------------------------------------------------------------

// To the nearest integer, ties to even, of a magnitude below 2**22: the sum has no bits left for a fraction.
template <typename V>
V nearest(V value) {
  const V no_fraction = V::all(0x1.8p+23f);
  return (value + no_fraction) - no_fraction;
}

// One block: v [kInt8Block] to values and its scale; lost[i] = v[i] - value * scale, unless null.
void quantize_block(const float* v, int8_t* values, float* scale, float* lost) {
  Vector largest;
  for (int64_t i = 0; i < kInt8Block; i += Vector::kWidth) largest = largest.larger_magnitude(Vector::load<Dtype::f32>(v + i));
  *scale = block_scale(largest.max_magnitude());
  if (!(*scale > 0)) {
    std::memset(values, 0, kInt8Block);
    if (lost != nullptr) std::memset(lost, 0, kInt8Block * sizeof(float));
    return;
  }
  const Vector step = Vector::all(*scale), inverse = Vector::all(1 / *scale);
  for (int64_t i = 0; i < kInt8Block; i += Vector::kWidth) {
    const Vector value = Vector::load<Dtype::f32>(v + i), integer = nearest(value * inverse);
    integer.store_int8(values + i);
    if (lost != nullptr) (value - integer * step).store<Dtype::f32>(lost + i);
  }
}

template <bool kResidual>
void quantize(const float* source, int64_t numel, float scale, float* residual, int8_t* values, float* scales, int64_t padded_numel) {
  alignas(64) float v[kInt8Block], lost[kInt8Block];
  for (int64_t begin = 0; begin < padded_numel; begin += kInt8Block) {
    const int64_t count = std::max<int64_t>(0, std::min(kInt8Block, numel - begin));
    for_each(count, [&](auto zero, int64_t i) {
      using V = decltype(zero);
      V value = V::template load<Dtype::f32>(source + begin + i) * V::all(scale);
      if constexpr (kResidual) value = value + V::template load<Dtype::f32>(residual + begin + i);
      value.template store<Dtype::f32>(v + i);
    });
    std::memset(v + count, 0, static_cast<size_t>(kInt8Block - count) * sizeof(float));
    quantize_block(v, values + begin, scales + begin / kInt8Block, kResidual ? lost : nullptr);
    if (kResidual && count > 0) std::memcpy(residual + begin, lost, static_cast<size_t>(count) * sizeof(float));
  }
}

void quantize_loop(const float* source, int64_t numel, float scale, float* residual, int8_t* values, float* scales, int64_t padded_numel) {
  const auto run = residual != nullptr ? quantize<true> : quantize<false>;
  run(source, numel, scale, residual, values, scales, padded_numel);
}

void reduce_int8_loop(const int8_t* values, const float* scales, int64_t stride, int64_t world_size, int8_t* out_values, float* out_scales,
                      int64_t numel, float* error) {
  alignas(64) float sum[kStage];
  for (int64_t begin = 0; begin < numel; begin += kStage) {
    const int64_t count = std::min(kStage, numel - begin);
    for (int64_t r = 0; r < world_size; ++r) {
      const int8_t* const from = values + r * stride + begin;
      const auto* const steps = reinterpret_cast<const float*>(reinterpret_cast<const char*>(scales) + r * stride) + begin / kInt8Block;
      for (int64_t i = 0; i < count; i += Vector::kWidth) {
        const Vector value = Vector::load_int8(from + i) * Vector::all(steps[i / kInt8Block]);
        (r == 0 ? value : Vector::load<Dtype::f32>(sum + i) + value).store<Dtype::f32>(sum + i);
      }
    }
    for (int64_t i = 0; error != nullptr && i < count; i += Vector::kWidth) {
      (Vector::load<Dtype::f32>(sum + i) + Vector::load<Dtype::f32>(error + begin + i)).store<Dtype::f32>(sum + i);
    }
    for (int64_t i = 0; i < count; i += kInt8Block) {
      quantize_block(sum + i, out_values + begin + i, out_scales + (begin + i) / kInt8Block, error != nullptr ? error + begin + i : nullptr);
    }
  }
}

template <bool kSumsq>
Tally dequantize(const int8_t* values, const float* scales, float* target, int64_t numel) {
  Tally tally;
  for (int64_t begin = 0; begin < numel; begin += kInt8Block) {
    const int64_t count = std::min(kInt8Block, numel - begin);
    const float scale = scales[begin / kInt8Block];
    Vector squares, largest;
    Lane tail_squares, tail_largest;
    for_each(count, [&](auto zero, int64_t i) {
      using V = decltype(zero);
      const V value = V::load_int8(values + begin + i) * V::all(scale);
      value.template store<Dtype::f32>(target + begin + i);
      if constexpr (V::kWidth == Vector::kWidth) {
        largest = largest.larger_magnitude(value);
        if constexpr (kSumsq) squares = squares + value * value;
      } else {
        tail_largest = tail_largest.larger_magnitude(value);
        if constexpr (kSumsq) tail_squares = tail_squares + value * value;
      }
    });
    if constexpr (kSumsq) tally.sumsq += static_cast<double>(squares.sum()) + tail_squares.sum();
    if (Lane{largest.max_magnitude()}.larger_magnitude(tail_largest).max_magnitude() <= 0x1.fffffep+127f) continue;
    for (int64_t i = begin; i < begin + count; ++i) tally.nonfinite += (bits_of(target[i]) & 0x7fffffffu) >= 0x7f800000u;
  }
  return tally;
}

Tally dequantize_loop(const int8_t* values, const float* scales, float* target, int64_t numel, bool want_sumsq) {
  const auto run = want_sumsq ? dequantize<true> : dequantize<false>;
  return run(values, scales, target, numel);
}

}  // namespace
}  // namespace gpualloc::cpu
