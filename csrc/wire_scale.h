// The power-of-two factor that FP16 gradients are multiplied with on the wire, the same on every rank because every rank
// computes it from the same averaged gradients.
//
// It keeps the largest averaged gradient at 2**11 to 2**12, 16 times below FP16's largest number: room for the single ranks'
// gradients to be larger than their mean. Falling short costs nothing, so it grows by one factor of two a step; a gradient
// that becomes larger lowers it at once. An overflow halves it and stops its growth for kHoldSteps steps, because then the
// ranks' gradients cancel more than the mean shows.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define GPUALLOC_HOST_DEVICE __host__ __device__
#else
#define GPUALLOC_HOST_DEVICE
#endif

namespace gpualloc {

constexpr float kHoldSteps = 2000;
constexpr float kMinScale = 0x1p-24f, kMaxScale = 0x1p+24f;
constexpr float kBlindScale = 0x1p+10f;
constexpr int kTargetExponent = 11;

// As it lies in memory: an FP32 tensor of four elements.
struct WireState {
  float scale;    // pack multiplies with it
  float inverse;  // unpack multiplies with it
  float absmax;   // largest finite or non-finite magnitude that unpack saw in this step
  float hold;     // steps until the scale may grow again
};

// What the largest gradient asks for. Where all came out as zero they may be too small for the wire: up to kBlindScale is tried.
GPUALLOC_HOST_DEVICE inline float target_scale(const WireState& state) {
  if (state.absmax == 0) return state.scale < kBlindScale ? kBlindScale : state.scale;
  const float target = ldexpf(1.0f, kTargetExponent - ilogbf(state.absmax));
  return target > kMaxScale ? kMaxScale : target < kMinScale ? kMinScale : target;
}

// The state for the next step.
GPUALLOC_HOST_DEVICE inline WireState next_state(WireState state, bool overflowed) {
  if (overflowed) {
    state.scale = state.scale / 2 > kMinScale ? state.scale / 2 : kMinScale;
    state.hold = kHoldSteps;
  } else {
    const float target = target_scale(state);
    if (target < state.scale) {
      state.scale = target;
    } else if (state.hold > 0) {
      state.hold -= 1;
    } else if (target > state.scale) {
      state.scale *= 2;
    }
  }
  state.inverse = 1 / state.scale;
  state.absmax = 0;
  return state;
}

}  // namespace gpualloc
