// AVX2 + F16C converters: 8 elements a vector.
#include <immintrin.h>

#include <algorithm>

#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

struct Vector {
  static constexpr int64_t kWidth = 8;
  static constexpr bool kStreams = true;
  __m256 value = _mm256_setzero_ps();

  template <Dtype D>
  static Vector load(const void* from) {
    if constexpr (D == Dtype::f32) {
      return {_mm256_loadu_ps(static_cast<const float*>(from))};
    } else if constexpr (D == Dtype::f64) {
      const auto* values = static_cast<const double*>(from);
      const __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd(values)), high = _mm256_cvtpd_ps(_mm256_loadu_pd(values + 4));
      return {_mm256_set_m128(high, low)};
    } else {
      const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(from));
      if constexpr (D == Dtype::f16) return {_mm256_cvtph_ps(halves)};
      return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
    }
  }

  template <Dtype D, bool kStream>
  void store(void* to) const {
    if constexpr (D == Dtype::f32) {
      auto* values = static_cast<float*>(to);
      kStream ? _mm256_stream_ps(values, value) : _mm256_storeu_ps(values, value);
    } else if constexpr (D == Dtype::f64) {
      auto* values = static_cast<double*>(to);
      _mm256_storeu_pd(values, _mm256_cvtps_pd(_mm256_castps256_ps128(value)));
      _mm256_storeu_pd(values + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
    } else {
      auto* halves = static_cast<__m128i*>(to);
      kStream ? _mm_stream_si128(halves, as<D>()) : _mm_storeu_si128(halves, as<D>());
    }
  }

  template <Dtype D, bool kStream>
  static void store_two(Vector first, Vector second, void* to) {
    first.store<D, kStream>(to);
    second.store<D, kStream>(static_cast<char*>(to) + kWidth * size_of(D));
  }

  Vector scaled(float scale) const { return {_mm256_mul_ps(value, _mm256_set1_ps(scale))}; }
  void add_square(Vector other) { value = _mm256_add_ps(value, _mm256_mul_ps(other.value, other.value)); }


  Vector on_wire(float wire_scale, float limit, Vector& absmax) const {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value);
    const __m256 is_finite = _mm256_cmp_ps(magnitude, _mm256_set1_ps(INFINITY), _CMP_LT_OQ);
    absmax.value = _mm256_max_ps(absmax.value, _mm256_and_ps(magnitude, is_finite));
    const __m256 v = _mm256_mul_ps(value, _mm256_set1_ps(wire_scale));
    const __m256 clamped = _mm256_max_ps(_mm256_min_ps(v, _mm256_set1_ps(limit)), _mm256_set1_ps(-limit));
    return {_mm256_blendv_ps(value, clamped, is_finite)};
  }

  void raise(Vector other) {
    value = _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(value), other.magnitude_bits()));
  }

  uint32_t max_bits() const {
    alignas(32) uint32_t lanes[kWidth];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_castps_si256(value));
    return *std::max_element(lanes, lanes + kWidth);
  }

  int count_from(uint32_t bits) const {
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(bits)), magnitude_bits());
    return kWidth - __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(below))));
  }

  float sum() const {
    alignas(32) float lanes[kWidth];
    _mm256_store_ps(lanes, value);
    float total = 0;
    for (const float lane : lanes) total += lane;
    return total;
  }

 private:
  __m256i magnitude_bits() const { return _mm256_castps_si256(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), value)); }

  template <Dtype D>
  __m128i as() const {
    if constexpr (D == Dtype::f16) return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    const __m256i result = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan)), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
  }
};

}  // namespace
}  // namespace gpualloc::cpu

#include "cpu/convert_loops.h"

namespace gpualloc::cpu {
const Converters avx2_converters{"avx2", pack_loop, unpack_loop, [] { _mm_sfence(); }};
}
