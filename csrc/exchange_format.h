// How gradients are cut into shards, and what a shard of INT8 is. No torch, no CUDA.
//
// Rank r owns elements [r * S, (r + 1) * S) of a bucket, S = shard_numel(numel, world_size); elements past the bucket's end
// are zeros. A shard of INT8 is S values, then one FP32 scale for every kInt8Block of them: element i is value[i] *
// scale[i / kInt8Block].
#pragma once

#include <cstdint>

#include "host_device.h"

namespace gpualloc {

constexpr int64_t kShardAlign = 1024;  // elements: every shard starts 16-byte aligned in every wire format
constexpr int64_t kInt8Block = 256;    // elements that share one scale
// What callers may ask for: the bytes of all shards together then fit 64 bits.
constexpr int64_t kMaxWorldSize = int64_t{1} << 20, kMaxNumel = int64_t{1} << 56;

// Elements of one rank's shard: ceil(numel / world_size) rounded up to kShardAlign, 0 for 0. world_size is 1 or more.
GPUALLOC_HOST_DEVICE constexpr int64_t shard_numel(int64_t numel, int64_t world_size) {
  const int64_t least = (numel + world_size - 1) / world_size;
  return (least + kShardAlign - 1) / kShardAlign * kShardAlign;
}

// Bytes of one shard of INT8.
GPUALLOC_HOST_DEVICE constexpr int64_t int8_shard_bytes(int64_t shard_numel) { return shard_numel + shard_numel / kInt8Block * 4; }

namespace {  // compiled for each instruction set apart

// A scale below the smallest normal number loses bits, down to zero, and its inverse runs off to inf: blocks of tiny values
// share this one and lose at most half of it, 2**-127.
constexpr float kMinBlockScale = 0x1p-126f;
// The largest scale of which 127 are finite: a 127th of the largest FP32 number, rounded down.
constexpr float kMaxBlockScale = 0x1.020406p+121f;

// The scale of a block whose largest magnitude is `absmax`: about absmax / 127, so that v * (1 / scale) rounds to -127 .. 127.
// 0 where all are zeros, NaN where one is inf or NaN.
GPUALLOC_HOST_DEVICE inline float block_scale(float absmax) {
  if (!(absmax <= 0x1.fffffep+127f)) return __builtin_nanf("");
  if (absmax == 0) return 0;
  const float scale = absmax / 127;
  return scale < kMinBlockScale ? kMinBlockScale : scale > kMaxBlockScale ? kMaxBlockScale : scale;
}

}  // namespace
}  // namespace gpualloc
