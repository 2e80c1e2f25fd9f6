// The loops behind Converters, written once over a vector type. Each convert_<isa>.cpp defines `Vector` in an anonymous
// namespace, so that no instruction set leaks into another translation unit through a shared template.
//
// Vector has: kWidth; Vector() zero; load<Dtype>(const void*); store<Dtype, kStream>(void*) const, which rounds to nearest even,
// with kStream past the caches to an address aligned to kStreamAlign; kStreams, whether it can; store_two<Dtype, kStream>(Vector,
// Vector, void*), the same of two neighbours; scaled(float);
// add_square(Vector); sum(); on_wire(wire_scale, limit, Vector& absmax) as narrow.h's. And on the bits of magnitudes, which are
// ordered as those are with NaN above inf: raise(Vector), lane by lane the larger; max_bits(); count_from(bits), the lanes that
// are not below.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/convert.h"
#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

// Elements between two additions to the FP64 sum of squares, and between two looks whether one of them was not finite.
constexpr int64_t kBlock = 2048;

constexpr int64_t kStreamAlign = 64;  // bytes, a cache line: the processor combines its stores into one write

// Bytes that a streaming loop asks for ahead of its loads: the hardware's prefetcher stops at the end of a page. Into L2, which has more reads
// under way than a core's first level: of one core that reads two bytes for each it writes, those are the limit.
constexpr int64_t kPrefetchBytes = 8192;

template <Dtype D>
using Stored = std::conditional_t<D == Dtype::f32, float, std::conditional_t<D == Dtype::f64, double, uint16_t>>;

// The least FP32 magnitude that is inf when stored, as bits: half a step above the largest finite number, where ties go up.
template <Dtype D>
constexpr uint32_t kFirstInf = D == Dtype::f16 ? 0x477ff000u : D == Dtype::bf16 ? 0x7f7f8000u : kInfBits;

template <Dtype From, Dtype To, bool kSumsq, bool kWire>
struct Converter {
  const float scale, wire_scale, limit;
  Tally tally{};

  // numel <= kBlock; with kStream `to` is aligned to kStreamAlign.
  template <bool kStream>
  void convert(const Stored<From>* from, Stored<To>* to, int64_t numel) {
    constexpr int64_t kStep = 4 * Vector::kWidth;
    Vector squares, largest, absmax;
    const auto one = [&](int64_t i) {
      Vector value = Vector::template load<From>(from + i).scaled(scale);
      largest.raise(value);
      if constexpr (kWire) value = value.on_wire(wire_scale, limit, absmax);
      if constexpr (kSumsq) squares.add_square(value);
      return value;
    };
    int64_t i = 0;
    for (; i + kStep <= numel; i += kStep) {
      if constexpr (kStream) {
        for (size_t line = 0; line < kStep * sizeof(*from); line += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(from + i) + line + kPrefetchBytes, 0, 2);
        }
      }
      for (int64_t k = i; k < i + kStep; k += 2 * Vector::kWidth) {
        const Vector first = one(k), second = one(k + Vector::kWidth);
        Vector::template store_two<To, kStream>(first, second, to + k);
      }
    }
    for (; i + Vector::kWidth <= numel; i += Vector::kWidth) one(i).template store<To, kStream>(to + i);

    uint32_t largest_bits = largest.max_bits();
    float tail_squares = 0;
    for (; i < numel; ++i) {
      float value = widen<From>(from + i) * scale;
      largest_bits = std::max(largest_bits, bits_of(value) & kMagnitudeBits);
      if constexpr (kWire) value = on_wire(value, wire_scale, limit, tally.absmax);
      narrow<To>(value, to + i);
      if constexpr (kSumsq) tail_squares += value * value;
    }
    if constexpr (kSumsq) tally.sumsq += static_cast<double>(squares.sum()) + tail_squares;
    if constexpr (kWire) tally.absmax = std::max(tally.absmax, float_of(absmax.max_bits()));
    constexpr uint32_t kFirst = kWire ? kInfBits : kFirstInf<To>;  // what is finite is clamped
    if (largest_bits >= kFirst) tally.nonfinite += count_from(kFirst, from, numel);
  }

  // Of the scaled elements, those whose magnitude is not below that of the bits.
  int64_t count_from(uint32_t bits, const Stored<From>* from, int64_t numel) const {
    int64_t count = 0, i = 0;
    for (; i + Vector::kWidth <= numel; i += Vector::kWidth) count += Vector::template load<From>(from + i).scaled(scale).count_from(bits);
    for (; i < numel; ++i) count += (bits_of(widen<From>(from + i) * scale) & kMagnitudeBits) >= bits;
    return count;
  }
};

template <Dtype From, Dtype To, bool kSumsq, bool kWire>
Tally convert(const void* from_ptr, void* to_ptr, int64_t numel, float scale, const WireState* state, bool stream) {
  const auto* from = static_cast<const Stored<From>*>(from_ptr);
  auto* to = static_cast<Stored<To>*>(to_ptr);
  Converter<From, To, kSumsq, kWire> converter{scale, kWire ? state->scale : 1, kWire ? state->limit : 0};
  const int64_t past_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kStreamAlign);
  if (past_line % static_cast<int64_t>(sizeof(*to)) != 0) stream = false;  // not even an element is aligned
  if (past_line != 0 && kSumsq) stream = false;                            // the sum's order must not depend on the address
  int64_t begin = 0;
  if (stream && past_line != 0) {
    begin = std::min<int64_t>(numel, (kStreamAlign - past_line) / static_cast<int64_t>(sizeof(*to)));
    converter.template convert<false>(from, to, begin);
  }
  for (; begin < numel; begin += kBlock) {
    const int64_t count = std::min(numel - begin, kBlock);
    if (stream) {
      converter.template convert<Vector::kStreams>(from + begin, to + begin, count);
    } else {
      converter.template convert<false>(from + begin, to + begin, count);
    }
  }
  return converter.tally;
}

template <Dtype Wire, bool kWire>
Tally pack_as(const void* source, Dtype dtype, uint16_t* wire, int64_t numel, float scale, const WireState* state, bool stream) {
  switch (dtype) {
    case Dtype::f32: return convert<Dtype::f32, Wire, false, kWire>(source, wire, numel, scale, state, stream);
    case Dtype::f16: return convert<Dtype::f16, Wire, false, kWire>(source, wire, numel, scale, state, stream);
    case Dtype::bf16: return convert<Dtype::bf16, Wire, false, kWire>(source, wire, numel, scale, state, stream);
    case Dtype::f64: return convert<Dtype::f64, Wire, false, kWire>(source, wire, numel, scale, state, stream);
  }
  return {};
}

template <Dtype Wire, bool kSumsq>
Tally unpack_as(const uint16_t* wire, void* target, Dtype dtype, int64_t numel, float scale, bool stream) {
  switch (dtype) {
    case Dtype::f32: return convert<Wire, Dtype::f32, kSumsq, false>(wire, target, numel, scale, nullptr, stream);
    case Dtype::f16: return convert<Wire, Dtype::f16, kSumsq, false>(wire, target, numel, scale, nullptr, stream);
    case Dtype::bf16: return convert<Wire, Dtype::bf16, kSumsq, false>(wire, target, numel, scale, nullptr, stream);
    case Dtype::f64: return convert<Wire, Dtype::f64, kSumsq, false>(wire, target, numel, scale, nullptr, stream);
  }
  return {};
}

Tally pack_loop(const void* source, Dtype dtype, uint16_t* wire, Dtype wire_dtype, int64_t numel, float scale, const WireState* state,
                bool stream) {
  const auto run = wire_dtype == Dtype::f16 ? (state != nullptr ? pack_as<Dtype::f16, true> : pack_as<Dtype::f16, false>)
                                            : (state != nullptr ? pack_as<Dtype::bf16, true> : pack_as<Dtype::bf16, false>);
  return run(source, dtype, wire, numel, scale, state, stream);
}

Tally unpack_loop(const uint16_t* wire, Dtype wire_dtype, void* target, Dtype dtype, int64_t numel, float scale, bool want_sumsq,
                  bool stream) {
  const auto run = wire_dtype == Dtype::f16 ? (want_sumsq ? unpack_as<Dtype::f16, true> : unpack_as<Dtype::f16, false>)
                                            : (want_sumsq ? unpack_as<Dtype::bf16, true> : unpack_as<Dtype::bf16, false>);
  return run(wire, target, dtype, numel, scale, stream);
}

}  // namespace
}  // namespace gpualloc::cpu
