// CPU pack and unpack of one contiguous stretch, vectorised; the reference that the CUDA kernels are tested against.
#pragma once

#include "segment.h"
#include "wire_scale.h"

namespace gpualloc::cpu {

// What one stretch of results held.
struct Tally {
  int64_t nonfinite = 0;
  double sumsq = 0;  // of the finite and non-finite results alike; only filled by unpack when asked
  float absmax = 0;  // the largest finite |float(source) * scale|; only filled by pack with a wire state
};

struct Converters {
  const char* isa;  // "avx512", "avx2" or "scalar"
  // wire[i] = narrow(float(source[i]) * scale), i < numel; with a wire state (null: none) as wire_scale.h says, only read here.
  // `stream`: store past the caches where that can be done; then call fence() at the end.
  Tally (*pack)(const void* source, Dtype dtype, uint16_t* wire, Dtype wire_dtype, int64_t numel, float scale, const WireState* state,
                bool stream);
  // target[i] = convert(float(wire[i]) * scale), i < numel
  Tally (*unpack)(const uint16_t* wire, Dtype wire_dtype, void* target, Dtype dtype, int64_t numel, float scale, bool want_sumsq,
                  bool stream);
  // Streamed stores of this thread become visible to the threads it synchronises with afterwards.
  void (*fence)();
};

// The fastest set this processor runs, chosen once.
const Converters& converters();

// Every set this processor runs, fastest first, ended by a null isa; for tests.
const Converters* all_converters();

extern const Converters scalar_converters;
extern const Converters avx2_converters;    // defined on x86 only
extern const Converters avx512_converters;  // defined on x86 only

}  // namespace gpualloc::cpu
