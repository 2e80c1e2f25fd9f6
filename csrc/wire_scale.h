// The power-of-two factor that FP16 gradients are multiplied with on the wire, the same on every rank because every rank
// computes it from the same agreed figures.
//
//   pack:    u = float(g) * c,  v = u * scale;  absmax = max |u| over the finite u;  a finite u with |v| > limit gives +-limit and
//            sets `saturated`;  inf and NaN pass and are not part of absmax
//   unpack:  float(v) * inverse
//
// The limit is 2**15 / world_size, so that no sum over the ranks overflows FP16, not even one that grows at every hop: each of
// the world_size roundings (of the values, then of the partial sums) adds at most 16, half of FP16's spacing below 2**16, and
// 2**15 + 16 * world_size stays below 65520, the first number that rounds to inf, up to 2046 ranks. A limit of 65504 / world_size
// would leave no room for a single rounding upwards.
//
// The scale aims at an absmax between limit / 16 and limit / 8: gradients may grow eightfold from one step to the next before
// anything is clamped. A gradient that becomes larger lowers it at once; falling short costs little, so it grows by one
// factor of two a step, but for the first figures, which are taken as they are.
#pragma once

#include <cmath>

#include "host_device.h"

namespace gpualloc {

constexpr float kMinScale = 0x1p-24f, kMaxScale = 0x1p+24f;
constexpr int kMaxScaleExponent = 24;
constexpr float kLargestSum = 0x1p+15f;

// As it lies in memory: an FP32 tensor of eight elements.
struct WireState {
  float scale;      // pack multiplies with it
  float inverse;    // unpack multiplies with it
  float absmax;     // the largest finite |u| that pack saw in this step
  float saturated;  // 1 where pack clamped in this step, else 0; beside absmax, so that one all-reduce (MAX) takes both
  float limit;      // of |v| on one rank
  float started;    // 1 once the scale has followed a gradient, else 0
  float unused[2];
};
static_assert(sizeof(WireState) == 32);

// `started`: the scale is one that followed gradients, in the run that is continued.
inline WireState first_state(float scale, int world_size, bool started) {
  return {scale, 1 / scale, 0, 0, kLargestSum / static_cast<float>(world_size), started ? 1.0f : 0.0f, {0, 0}};
}

// The largest power of two, within the ends, with absmax * target <= limit / 8; absmax > 0.
GPUALLOC_HOST_DEVICE inline float target_scale(float absmax, float limit) {
  const int exponent = ilogbf(limit) - 3 - ilogbf(absmax);
  if (exponent > kMaxScaleExponent) return kMaxScale;
  float target = ldexpf(1.0f, exponent);
  if (absmax * target > limit / 8) target /= 2;
  return target < kMinScale ? kMinScale : target;
}

// The state for the next step. `absmax` and `saturated` are those of all ranks; `nonfinite`: some averaged gradient was.
GPUALLOC_HOST_DEVICE inline WireState next_state(WireState state, float absmax, bool saturated, bool nonfinite) {
  const float target = absmax > 0 ? target_scale(absmax, state.limit) : state.scale;
  if (nonfinite || saturated) {
    const float half = state.scale / 2 > kMinScale ? state.scale / 2 : kMinScale;
    state.scale = target < half ? target : half;
  } else if (target < state.scale || state.started == 0) {
    state.scale = target;
  } else if (target > state.scale) {
    state.scale *= 2;
  }
  if (absmax > 0) state.started = 1;
  state.inverse = 1 / state.scale;
  state.absmax = 0;
  state.saturated = 0;
  return state;
}

}  // namespace gpualloc
