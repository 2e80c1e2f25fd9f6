// 8 FP32 values in an AVX2 register (operations: lane.h). Compile with -mavx2 -mf16c.
#pragma once

#include <immintrin.h>

#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

struct Vector {
  static constexpr int64_t kWidth = 8;
  __m256 value = _mm256_setzero_ps();

  static Vector all(float value) { return {_mm256_set1_ps(value)}; }

  template <Dtype D>
  static Vector load(const void* from) {
    if constexpr (D == Dtype::f32) {
      return {_mm256_loadu_ps(static_cast<const float*>(from))};
    } else {
      const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(from));
      if constexpr (D == Dtype::f16) return {_mm256_cvtph_ps(halves)};
      return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
    }
  }

  template <Dtype D>
  void store(void* to) const {
    if constexpr (D == Dtype::f32) {
      _mm256_storeu_ps(static_cast<float*>(to), value);
    } else {
      _mm_storeu_si128(static_cast<__m128i*>(to), D == Dtype::f16 ? _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT) : as_bf16());
    }
  }

  static Vector load_int8(const int8_t* from) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))))};
  }
  void store_int8(int8_t* to) const {
    const __m256i integers = _mm256_cvtps_epi32(value);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
  }

  friend Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.value, b.value)}; }
  friend Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.value, b.value)}; }
  friend Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.value, b.value)}; }

  Vector finite_or_zero() const {
    const __m256i finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7f800000), magnitude_bits());
    return {_mm256_and_ps(value, _mm256_castsi256_ps(finite))};
  }
  Vector larger_magnitude(Vector other) const {
    return {_mm256_castsi256_ps(_mm256_max_epu32(magnitude_bits(), other.magnitude_bits()))};
  }

  float max_magnitude() const {
    alignas(32) uint32_t lanes[kWidth];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), magnitude_bits());
    uint32_t largest = 0;
    for (const uint32_t lane : lanes) largest = lane > largest ? lane : largest;
    return float_of(largest);
  }

  float sum() const {
    alignas(32) float lanes[kWidth];
    _mm256_store_ps(lanes, value);
    float total = 0;
    for (const float lane : lanes) total += lane;
    return total;
  }

 private:
  __m256i magnitude_bits() const { return _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff)); }

  __m128i as_bf16() const {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i result = _mm256_blendv_epi8(rounded, quiet, is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
  }
};

}  // namespace
}  // namespace gpualloc::cpu
