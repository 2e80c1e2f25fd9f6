// One FP32 value with the operations of the vectors in vector_<isa>.h: what the end of a vector loop runs on, and every
// step of a scalar one.
//
// A vector has: kWidth; Vector() zero; all(float); load<Dtype>(const void*); store<Dtype>(void*) const, which rounds to
// nearest even; load_int8, and store_int8 of integers; + - * of FP32, not contracted; finite_or_zero();
// larger_magnitude(Vector), where NaN is the largest; max_magnitude() and sum() over its lanes.
#pragma once

#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

struct Lane {
  static constexpr int64_t kWidth = 1;
  float value = 0;

  static Lane all(float value) { return {value}; }
  template <Dtype D>
  static Lane load(const void* from) { return {widen<D>(from)}; }
  template <Dtype D>
  void store(void* to) const { narrow<D>(value, to); }
  static Lane load_int8(const int8_t* from) { return {static_cast<float>(*from)}; }
  void store_int8(int8_t* to) const { *to = static_cast<int8_t>(value); }

  friend Lane operator+(Lane a, Lane b) { return {a.value + b.value}; }
  friend Lane operator-(Lane a, Lane b) { return {a.value - b.value}; }
  friend Lane operator*(Lane a, Lane b) { return {a.value * b.value}; }

  Lane finite_or_zero() const { return {magnitude_bits() < 0x7f800000u ? value : 0}; }
  Lane larger_magnitude(Lane other) const { return magnitude_bits() < other.magnitude_bits() ? other : *this; }
  float max_magnitude() const { return float_of(magnitude_bits()); }
  float sum() const { return value; }

 private:
  uint32_t magnitude_bits() const { return bits_of(value) & 0x7fffffffu; }
};

}  // namespace
}  // namespace gpualloc::cpu
