// Inputs that meet every case of the gradient exchange, and its INT8 loops over whole buckets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/exchange.h"

namespace gpualloc::test {

// FP32 elements whose kind changes every kInt8Block; `special` adds blocks of denormals, of the largest numbers, with inf, NaN.
inline std::vector<float> random_floats(int64_t numel, std::mt19937_64& rng, bool special) {
  std::vector<float> values(static_cast<size_t>(numel));
  std::normal_distribution<float> normal;
  const auto tiny = [&] { return std::ldexp(normal(rng), -140); };  // around the smallest normal number / 127
  const auto huge = [&] { return std::copysign(std::numeric_limits<float>::max() / (1.0f + static_cast<float>(rng() % 3)), normal(rng)); };
  for (int64_t begin = 0; begin < numel; begin += kInt8Block) {
    const auto kind = begin == 0 && !special ? 0 : rng() % (special ? 9 : 4);
    const int64_t end = std::min(numel, begin + kInt8Block);
    const auto exponent = static_cast<int>(rng() % 40) - 30;
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      switch (kind) {
        case 1: values[i] = rng() % 2 == 0 ? 0.0f : -0.0f; break;
        case 2: values[i] = 0.5f * static_cast<float>(static_cast<int>(rng() % 509) - 254); break;  // ties: with 127 the scale is 1
        case 4: values[i] = tiny(); break;
        case 5: values[i] = std::numeric_limits<float>::denorm_min() * static_cast<float>(rng() % 3); break;
        case 6: values[i] = huge(); break;
        case 7: values[i] = rng() % 64 == 0 ? -INFINITY : normal(rng); break;
        case 8: values[i] = rng() % 64 == 0 ? NAN : normal(rng); break;
        default: values[i] = std::ldexp(normal(rng), exponent);
      }
    }
    if (kind == 2) values[static_cast<size_t>(begin)] = 127.0f;
  }
  return values;
}

// Where element `begin` of a shard lies.
inline int8_t* values_at(uint8_t* shard, int64_t begin) { return reinterpret_cast<int8_t*>(shard) + begin; }
inline float* scales_at(uint8_t* shard, int64_t shard_numel, int64_t begin) {
  return reinterpret_cast<float*>(shard + shard_numel) + begin / kInt8Block;
}

// `source` [numel] into world_size shards at `wire`.
inline void quantize_bucket(const cpu::Exchangers& isa, const float* source, int64_t numel, int64_t world_size, float scale,
                            float* residual, uint8_t* wire) {
  const int64_t per_shard = shard_numel(numel, world_size);
  for (int64_t shard = 0; shard < world_size; ++shard) {
    const int64_t first = std::min(numel, shard * per_shard);
    uint8_t* const data = wire + shard * int8_shard_bytes(per_shard);
    isa.quantize(source + first, std::min(per_shard, numel - first), scale, residual == nullptr ? nullptr : residual + first,
                 values_at(data, 0), scales_at(data, per_shard, 0), per_shard);
  }
}

inline cpu::Tally dequantize_bucket(const cpu::Exchangers& isa, uint8_t* wire, int64_t numel, int64_t world_size, float* target) {
  const int64_t per_shard = shard_numel(numel, world_size);
  cpu::Tally total;
  for (int64_t shard = 0; shard < world_size; ++shard) {
    const int64_t first = std::min(numel, shard * per_shard);
    uint8_t* const data = wire + shard * int8_shard_bytes(per_shard);
    const cpu::Tally one =
        isa.dequantize(values_at(data, 0), scales_at(data, per_shard, 0), target + first, std::min(per_shard, numel - first), true);
    total.nonfinite += one.nonfinite;
    total.sumsq += one.sumsq;
  }
  return total;
}

inline void reduce_shards(const cpu::Exchangers& isa, uint8_t* shards, int64_t per_shard, int64_t world_size, uint8_t* out, float* error) {
  isa.reduce_int8(values_at(shards, 0), scales_at(shards, per_shard, 0), int8_shard_bytes(per_shard), world_size, values_at(out, 0),
                  scales_at(out, per_shard, 0), per_shard, error);
}

// A wire of arbitrary bytes: all values, -128 too, and scales of every kind.
inline std::vector<uint8_t> random_wire(int64_t per_shard, int64_t world_size, std::mt19937_64& rng, bool special) {
  std::vector<uint8_t> wire(static_cast<size_t>(world_size * int8_shard_bytes(per_shard)));
  for (uint8_t& byte : wire) byte = static_cast<uint8_t>(rng());
  std::normal_distribution<float> normal;
  for (int64_t shard = 0; shard < world_size; ++shard) {
    for (int64_t begin = 0; begin < per_shard; begin += kInt8Block) {
      float& scale = *scales_at(wire.data() + shard * int8_shard_bytes(per_shard), per_shard, begin);
      const auto kind = rng() % (special ? 7 : 3);
      scale = kind == 0   ? 0.0f
              : kind == 3 ? NAN
              : kind == 4 ? 0x1p+121f * (1.0f + std::fabs(normal(rng)))  // 127 of them overflow or nearly so
              : kind == 5 ? 0x1p-126f
                          : std::fabs(std::ldexp(normal(rng), static_cast<int>(rng() % 40) - 30));
    }
  }
  return wire;
}

}  // namespace gpualloc::test
