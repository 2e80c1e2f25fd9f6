// AVX-512 (F, BW, VL, DQ) converters: 16 elements a vector.
#include <immintrin.h>

#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

struct Vector {
  static constexpr int64_t kWidth = 16;
  static constexpr bool kStreams = true;
  __m512 value = _mm512_setzero_ps();

  template <Dtype D>
  static Vector load(const void* from) {
    if constexpr (D == Dtype::f32) {
      return {_mm512_loadu_ps(from)};
    } else if constexpr (D == Dtype::f64) {
      const auto* values = static_cast<const double*>(from);
      const __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(values)), high = _mm512_cvtpd_ps(_mm512_loadu_pd(values + 8));
      return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
    } else {
      const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(from));
      if constexpr (D == Dtype::f16) return {_mm512_cvtph_ps(halves)};
      return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
    }
  }

  template <Dtype D, bool kStream>
  void store(void* to) const {
    if constexpr (D == Dtype::f32) {
      auto* values = static_cast<float*>(to);
      kStream ? _mm512_stream_ps(values, value) : _mm512_storeu_ps(values, value);
    } else if constexpr (D == Dtype::f64) {
      auto* values = static_cast<double*>(to);
      _mm512_storeu_pd(values, _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
      _mm512_storeu_pd(values + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
    } else {
      auto* halves = static_cast<__m256i*>(to);
      kStream ? _mm256_stream_si256(halves, as<D>()) : _mm256_storeu_si256(halves, as<D>());
    }
  }

  // 16-bit formats fill a register, and a cache line.
  template <Dtype D, bool kStream>
  static void store_two(Vector first, Vector second, void* to) {
    if constexpr (D == Dtype::f16 || D == Dtype::bf16) {
      auto* halves = static_cast<__m512i*>(to);
      kStream ? _mm512_stream_si512(halves, as<D>(first, second)) : _mm512_storeu_si512(halves, as<D>(first, second));
    } else {
      first.store<D, kStream>(to);
      second.store<D, kStream>(static_cast<char*>(to) + kWidth * size_of(D));
    }
  }

  Vector scaled(float scale) const { return {_mm512_mul_ps(value, _mm512_set1_ps(scale))}; }
  void add_square(Vector other) { value = _mm512_add_ps(value, _mm512_mul_ps(other.value, other.value)); }
  float sum() const { return _mm512_reduce_add_ps(value); }

  Vector on_wire(float wire_scale, float limit, Vector& absmax) const {
    const __m512 magnitude = _mm512_abs_ps(value);
    const __mmask16 is_finite = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
    absmax.value = _mm512_mask_max_ps(absmax.value, is_finite, absmax.value, magnitude);
    const __m512 v = _mm512_min_ps(_mm512_mul_ps(value, _mm512_set1_ps(wire_scale)), _mm512_set1_ps(limit));
    return {_mm512_mask_max_ps(value, is_finite, v, _mm512_set1_ps(-limit))};
  }

  void raise(Vector other) { value = _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(value), other.magnitude_bits())); }
  uint32_t max_bits() const { return _mm512_reduce_max_epu32(_mm512_castps_si512(value)); }
  int count_from(uint32_t bits) const {
    return __builtin_popcount(_mm512_cmpge_epu32_mask(magnitude_bits(), _mm512_set1_epi32(static_cast<int>(bits))));
  }

 private:
  __m512i magnitude_bits() const { return _mm512_castps_si512(_mm512_abs_ps(value)); }

  template <Dtype D>
  __m256i as() const {
    if constexpr (D == Dtype::f16) return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_to_bf16(), 16));
  }

  template <Dtype D>
  static __m512i as(Vector first, Vector second) {
    if constexpr (D == Dtype::f16) return _mm512_inserti64x4(_mm512_castsi256_si512(first.as<D>()), second.as<D>(), 1);
    alignas(64) static constexpr uint16_t kUpperHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                              33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i upper_halves = _mm512_load_si512(kUpperHalves);
    return _mm512_permutex2var_epi16(first.rounded_to_bf16(), upper_halves, second.rounded_to_bf16());
  }

  // In the upper halves of 32 bits. Integer rounding and not AVX512_BF16's instruction, which flushes denormals.
  __m512i rounded_to_bf16() const {
    const __m512i bits = _mm512_castps_si512(value);
    const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_mask_add_epi32(up, is_odd, up, _mm512_set1_epi32(1));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));  // a quiet NaN
  }
};

}  // namespace
}  // namespace gpualloc::cpu

#include "cpu/convert_loops.h"

namespace gpualloc::cpu {
const Converters avx512_converters{"avx512", pack_loop, unpack_loop, [] { _mm_sfence(); }};
}
