// CPU pack and unpack of one contiguous stretch, vectorised; the reference that the CUDA kernels are tested against.
#pragma once

#include "segment.h"

namespace gpualloc::cpu {

// What one stretch of results held.
struct Tally {
  int64_t nonfinite = 0;
  double sumsq = 0;  // of the finite and non-finite results alike; only filled by unpack when asked
  float absmax = 0;  // the largest magnitude; NaN where there is one; only filled by unpack into FP32
};

struct Converters {
  const char* isa;  // "avx512", "avx2" or "scalar"
  // wire[i] = narrow(float(source[i]) * scale), i < numel
  Tally (*pack)(const void* source, Dtype dtype, uint16_t* wire, Dtype wire_dtype, int64_t numel, float scale);
  // target[i] = convert(float(wire[i]) * scale), i < numel
  Tally (*unpack)(const uint16_t* wire, Dtype wire_dtype, void* target, Dtype dtype, int64_t numel, float scale, bool want_sumsq);
};

// The fastest set this processor runs, chosen once.
const Converters& converters();

// Every set this processor runs, fastest first, ended by a null isa; for tests.
const Converters* all_converters();

extern const Converters scalar_converters;
extern const Converters avx2_converters;    // defined on x86 only
extern const Converters avx512_converters;  // defined on x86 only

}  // namespace gpualloc::cpu
