// What pack and unpack must give, in FP64 and without bit tricks, and random inputs that meet every case.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "segment.h"

namespace gpualloc::test {

// A 16-bit format: fraction bits, smallest normal exponent, and the first magnitude that rounds to inf.
struct Format {
  int fraction_bits;
  int min_exponent;
  double overflow;
};
constexpr Format kF16{10, -14, 65520.0};
inline const Format kBf16{7, -126, std::ldexp(511.0, 119)};  // halfway between the largest finite value and 2**128

inline const Format& format_of(Dtype dtype) { return dtype == Dtype::f16 ? kF16 : kBf16; }

// `value` rounded to the format, ties to even: to a multiple of the spacing at its magnitude.
inline double rounded(double value, Dtype dtype) {
  const Format& format = format_of(dtype);
  if (std::isnan(value) || std::isinf(value) || value == 0) return value;
  if (std::fabs(value) >= format.overflow) return std::copysign(INFINITY, value);
  const int exponent = std::max(std::ilogb(value), format.min_exponent);
  const double spacing = std::ldexp(1.0, exponent - format.fraction_bits);
  return std::copysign(std::nearbyint(std::fabs(value) / spacing) * spacing, value);
}

// The value of 16 bits.
inline double value_of(uint16_t bits, Dtype dtype) {
  const Format& format = format_of(dtype);
  const int exponent_bits = 15 - format.fraction_bits;
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  const int exponent = (bits >> format.fraction_bits) & ((1 << exponent_bits) - 1);
  double magnitude = 0;
  if (exponent == (1 << exponent_bits) - 1) {
    magnitude = fraction == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, format.min_exponent - format.fraction_bits);
  } else {
    magnitude = std::ldexp(fraction + (1 << format.fraction_bits), format.min_exponent + exponent - 1 - format.fraction_bits);
  }
  return bits >> 15 ? -magnitude : magnitude;
}

inline double load(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::f32: return static_cast<const float*>(data)[i];
    case Dtype::f64: return static_cast<const double*>(data)[i];
    default: return value_of(static_cast<const uint16_t*>(data)[i], dtype);
  }
}

// What storing the FP32 value in `dtype` must give.
inline double stored(float value, Dtype dtype) {
  return dtype == Dtype::f32 || dtype == Dtype::f64 ? static_cast<double>(value) : rounded(value, dtype);
}

inline bool same(double a, double b) { return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b)); }

inline const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return "f32";
    case Dtype::f16: return "f16";
    case Dtype::bf16: return "bf16";
    case Dtype::f64: return "f64";
  }
  return "?";
}

// Random elements over all magnitudes of the 16-bit formats and beyond; `special` sprinkles inf, NaN, ties and denormals.
inline std::vector<char> random_elements(Dtype dtype, int64_t numel, std::mt19937_64& rng, bool special) {
  std::vector<char> bytes(static_cast<size_t>(numel * size_of(dtype)) + 64);
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> exponent(-26, special ? 17 : 3);
  for (int64_t i = 0; i < numel; ++i) {
    double value = std::ldexp(normal(rng), exponent(rng));
    if (special) {
      switch (rng() % 40) {
        case 0: value = INFINITY; break;
        case 1: value = NAN; break;
        case 2: value = 65520.0; break;
        case 3: value = std::ldexp(static_cast<double>(rng() % 4096) + 0.5, -24); break;  // between FP16 denormals
        case 4: value = 1.0 + static_cast<double>(rng() % 64) * std::ldexp(1.0, -11); break;  // ties of FP16
        case 5: value = -0.0; break;
        default: break;
      }
    }
    char* const to = bytes.data() + i * size_of(dtype);
    if (dtype == Dtype::f64) {
      std::memcpy(to, &value, 8);
    } else if (dtype == Dtype::f32) {
      const auto single = static_cast<float>(value);
      std::memcpy(to, &single, 4);
    } else {
      auto bits = static_cast<uint16_t>(rng());
      while (!special && !std::isfinite(value_of(bits, dtype))) bits = static_cast<uint16_t>(rng());
      std::memcpy(to, &bits, 2);
    }
  }
  return bytes;
}

inline int& failures() {
  static int count = 0;
  return count;
}
inline int& passes() {
  static int count = 0;
  return count;
}

// Counts a check and prints the first 20 that fail.
template <typename... Args>
void check(bool ok, const char* format, Args... args) {
  if (ok) {
    ++passes();
  } else if (++failures() <= 20) {
    std::printf("FAILED: ");
    std::printf(format, args...);
    std::printf("\n");
  }
}

// The closing line, and the exit code.
inline int finish() {
  std::printf("%d passed, %d failed\n", passes(), failures());
  return failures() == 0 && passes() > 0 ? 0 : 1;
}

}  // namespace gpualloc::test
