// The loops behind Converters, written once over a vector type. Each convert_<isa>.cpp defines `Vector` in an anonymous
// namespace, so that no instruction set leaks into another translation unit through a shared template.
//
// Vector has: kWidth; Vector() zero; load<Dtype>(const void*); store<Dtype>(void*) const, which rounds to nearest even;
// scaled(float); add_square(Vector); sum().
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

// Elements between two looks at the stored results for inf and NaN, and between two additions to the FP64 sum of squares:
// small enough to stay in the L1 cache, large enough to cost nothing.
constexpr int64_t kBlock = 2048;

template <Dtype D>
struct Storage;
template <>
struct Storage<Dtype::f32> { using type = float; using bits = uint32_t; static constexpr bits kInf = 0x7f800000u; };
template <>
struct Storage<Dtype::f64> { using type = double; using bits = uint64_t; static constexpr bits kInf = 0x7ff0000000000000u; };
template <>
struct Storage<Dtype::f16> { using type = uint16_t; using bits = uint16_t; static constexpr bits kInf = 0x7c00u; };
template <>
struct Storage<Dtype::bf16> { using type = uint16_t; using bits = uint16_t; static constexpr bits kInf = 0x7f80u; };

// A stored value is inf or NaN exactly when its bits without the sign are at least those of inf. The compiler vectorises
// the maximum; only a block that holds one is counted.
template <Dtype D>
void look_at(const typename Storage<D>::type* values, int64_t numel, Tally& tally) {
  using Bits = typename Storage<D>::bits;
  constexpr Bits kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  Bits largest = 0;
  const auto magnitude = [&](int64_t i) {
    Bits bits;
    std::memcpy(&bits, values + i, sizeof bits);
    return static_cast<Bits>(bits & kMagnitude);
  };
  for (int64_t i = 0; i < numel; ++i) largest = std::max(largest, magnitude(i));
  if constexpr (D == Dtype::f32) tally.absmax = larger_magnitude(tally.absmax, float_of(largest));
  if (largest < Storage<D>::kInf) return;
  for (int64_t i = 0; i < numel; ++i) tally.nonfinite += magnitude(i) >= Storage<D>::kInf;
}

template <Dtype From, Dtype To, bool kSumsq>
Tally convert(const void* from_ptr, void* to_ptr, int64_t numel, float scale) {
  const auto* from = static_cast<const typename Storage<From>::type*>(from_ptr);
  auto* to = static_cast<typename Storage<To>::type*>(to_ptr);
  Tally tally;
  for (int64_t begin = 0; begin < numel; begin += kBlock) {
    const int64_t end = std::min(numel, begin + kBlock);
    Vector squares;
    float tail_squares = 0;
    int64_t i = begin;
    for (; i + Vector::kWidth <= end; i += Vector::kWidth) {
      const Vector value = Vector::template load<From>(from + i).scaled(scale);
      value.template store<To>(to + i);
      if constexpr (kSumsq) squares.add_square(value);
    }
    for (; i < end; ++i) {
      const float value = widen<From>(from + i) * scale;
      narrow<To>(value, to + i);
      if constexpr (kSumsq) tail_squares += value * value;
    }
    look_at<To>(to + begin, end - begin, tally);
    if constexpr (kSumsq) tally.sumsq += static_cast<double>(squares.sum()) + tail_squares;
  }
  return tally;
}

template <Dtype Wire>
Tally pack_as(const void* source, Dtype dtype, uint16_t* wire, int64_t numel, float scale) {
  switch (dtype) {
    case Dtype::f32: return convert<Dtype::f32, Wire, false>(source, wire, numel, scale);
    case Dtype::f16: return convert<Dtype::f16, Wire, false>(source, wire, numel, scale);
    case Dtype::bf16: return convert<Dtype::bf16, Wire, false>(source, wire, numel, scale);
    case Dtype::f64: return convert<Dtype::f64, Wire, false>(source, wire, numel, scale);
  }
  return {};
}

template <Dtype Wire, bool kSumsq>
Tally unpack_as(const uint16_t* wire, void* target, Dtype dtype, int64_t numel, float scale) {
  switch (dtype) {
    case Dtype::f32: return convert<Wire, Dtype::f32, kSumsq>(wire, target, numel, scale);
    case Dtype::f16: return convert<Wire, Dtype::f16, kSumsq>(wire, target, numel, scale);
    case Dtype::bf16: return convert<Wire, Dtype::bf16, kSumsq>(wire, target, numel, scale);
    case Dtype::f64: return convert<Wire, Dtype::f64, kSumsq>(wire, target, numel, scale);
  }
  return {};
}

Tally pack_loop(const void* source, Dtype dtype, uint16_t* wire, Dtype wire_dtype, int64_t numel, float scale) {
  return wire_dtype == Dtype::f16 ? pack_as<Dtype::f16>(source, dtype, wire, numel, scale)
                                  : pack_as<Dtype::bf16>(source, dtype, wire, numel, scale);
}

Tally unpack_loop(const uint16_t* wire, Dtype wire_dtype, void* target, Dtype dtype, int64_t numel, float scale, bool want_sumsq) {
  if (wire_dtype == Dtype::f16) {
    return want_sumsq ? unpack_as<Dtype::f16, true>(wire, target, dtype, numel, scale)
                      : unpack_as<Dtype::f16, false>(wire, target, dtype, numel, scale);
  }
  return want_sumsq ? unpack_as<Dtype::bf16, true>(wire, target, dtype, numel, scale)
                    : unpack_as<Dtype::bf16, false>(wire, target, dtype, numel, scale);
}

}  // namespace
}  // namespace gpualloc::cpu
