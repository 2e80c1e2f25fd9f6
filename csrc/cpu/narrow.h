// Scalar conversions between FP32 and the 16-bit formats, round to nearest even, NaN stays NaN. In an anonymous namespace:
// each translation unit compiles its own for its instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "segment.h"

namespace gpualloc::cpu {
namespace {

constexpr uint32_t kMagnitudeBits = 0x7fffffffu, kInfBits = 0x7f800000u;

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The v that wire_scale.h makes of u; the largest finite |u| is kept.
inline float on_wire(float u, float wire_scale, float limit, float& absmax) {
  const float magnitude = float_of(bits_of(u) & kMagnitudeBits);
  if (!(magnitude < INFINITY)) return u;
  absmax = absmax < magnitude ? magnitude : absmax;
  const float v = u * wire_scale;
  return v > limit ? limit : v < -limit ? -limit : v;
}

inline uint16_t to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);  // a quiet NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_bf16(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }

inline uint16_t to_f16(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // from 65520 on, the nearest is inf
  if (magnitude < 0x38800000u) {  // below 2**-14: adding 0.5 lets the FP32 adder round to a multiple of 2**-24
    const float shifted = float_of(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000u));
  }
  magnitude += 0xc8000fffu + ((magnitude >> 13) & 1u);  // exponent bias 127 -> 15, and half an ulp towards even
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}

inline float from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x0400u) return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  return float_of(sign | ((magnitude << 13) + 0x38000000u));
}

template <Dtype D>
float widen(const void* from) {
  if constexpr (D == Dtype::f32) {
    return *static_cast<const float*>(from);
  } else if constexpr (D == Dtype::f64) {
    return static_cast<float>(*static_cast<const double*>(from));
  } else if constexpr (D == Dtype::f16) {
    return from_f16(*static_cast<const uint16_t*>(from));
  } else {
    return from_bf16(*static_cast<const uint16_t*>(from));
  }
}

template <Dtype D>
void narrow(float value, void* to) {
  if constexpr (D == Dtype::f32) {
    *static_cast<float*>(to) = value;
  } else if constexpr (D == Dtype::f64) {
    *static_cast<double*>(to) = value;
  } else if constexpr (D == Dtype::f16) {
    *static_cast<uint16_t*>(to) = to_f16(value);
  } else {
    *static_cast<uint16_t*>(to) = to_bf16(value);
  }
}

}  // namespace
}  // namespace gpualloc::cpu
