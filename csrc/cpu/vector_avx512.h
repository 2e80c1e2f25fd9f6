// 16 FP32 values in an AVX-512 register (operations: lane.h). Compile with -mavx512f -mavx512bw -mavx512vl -mavx512dq.
#pragma once

#include <immintrin.h>

#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

struct Vector {
  static constexpr int64_t kWidth = 16;
  __m512 value = _mm512_setzero_ps();

  static Vector all(float value) { return {_mm512_set1_ps(value)}; }

  template <Dtype D>
  static Vector load(const void* from) {
    if constexpr (D == Dtype::f32) {
      return {_mm512_loadu_ps(from)};
    } else {
      const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(from));
      if constexpr (D == Dtype::f16) return {_mm512_cvtph_ps(halves)};
      return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
    }
  }

  template <Dtype D>
  void store(void* to) const {
    if constexpr (D == Dtype::f32) {
      _mm512_storeu_ps(to, value);
    } else {
      _mm256_storeu_si256(static_cast<__m256i*>(to), D == Dtype::f16 ? _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT) : as_bf16());
    }
  }

  static Vector load_int8(const int8_t* from) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
  }
  void store_int8(int8_t* to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value)));
  }

  friend Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
  friend Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
  friend Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }

  Vector finite_or_zero() const {
    const __mmask16 finite = _mm512_cmplt_epu32_mask(magnitude_bits(), _mm512_set1_epi32(0x7f800000));
    return {_mm512_maskz_mov_ps(finite, value)};
  }
  Vector larger_magnitude(Vector other) const {
    return {_mm512_castsi512_ps(_mm512_max_epu32(magnitude_bits(), other.magnitude_bits()))};
  }
  float max_magnitude() const { return float_of(_mm512_reduce_max_epu32(magnitude_bits())); }
  float sum() const { return _mm512_reduce_add_ps(value); }

 private:
  __m512i magnitude_bits() const { return _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff)); }

  // Integer rounding and not AVX512_BF16's instruction, which flushes denormals.
  __m256i as_bf16() const {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded, quiet));
  }
};

}  // namespace
}  // namespace gpualloc::cpu
