// Every instruction set of the exchange loops against an FP64 reference: not one bit of tolerance, because FP64 holds an
// FP32 sum, product or quotient with more than 2 * 24 + 1 bits, and rounding that to FP32 is FP32's own rounding.
#include "cpu/exchange.h"
#include "tests/exchange_cases.h"
#include "tests/reference.h"

using namespace gpualloc;
using namespace gpualloc::test;

namespace {

constexpr uint8_t kPoison = 0x5a;
constexpr int64_t kGuard = 16;  // elements

double single(double value) { return static_cast<float>(value); }

bool all_poison(const void* data, size_t num_bytes) {
  const auto* const bytes = static_cast<const uint8_t*>(data);
  return std::all_of(bytes, bytes + num_bytes, [](uint8_t byte) { return byte == kPoison; });
}

// --- 8 bits -----------------------------------------------------------------------------------------------------------

struct Block {
  double scale;
  double values[kInt8Block], lost[kInt8Block];
};

Block quantized(const std::vector<double>& v) {
  Block block{};
  double absmax = 0;
  for (const double value : v) absmax = std::isfinite(value) ? std::max(absmax, std::fabs(value)) : INFINITY;
  if (absmax == 0) return block;
  if (std::isinf(absmax)) {
    block.scale = NAN;
    return block;
  }
  block.scale = std::max(single(absmax / 127), static_cast<double>(std::numeric_limits<float>::min()));
  if (std::isinf(single(127 * block.scale))) block.scale = std::nextafterf(static_cast<float>(block.scale), 0.0f);
  const double inverse = single(1 / block.scale);
  for (size_t i = 0; i < v.size(); ++i) {
    block.values[i] = std::nearbyint(single(v[i] * inverse)) + 0.0;  // INT8 has no -0
    block.lost[i] = single(v[i] - single(block.values[i] * block.scale));
  }
  return block;
}

// Values and scale of one block against the reference; `wrong` counts.
void compare(const Block& expected, const int8_t* values, float scale, int64_t& wrong) {
  wrong += !same(scale, expected.scale);
  for (int64_t i = 0; i < kInt8Block; ++i) wrong += values[i] != expected.values[i];
}

void test_quantize(const cpu::Exchangers& isa, int64_t numel, int64_t world_size, int64_t skew, float scale, bool feedback, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 100 + skew * 10 + world_size));
  const int64_t per_shard = shard_numel(numel, world_size), wire_bytes = world_size * int8_shard_bytes(per_shard);
  std::vector<float> source = random_floats(numel, rng, special);
  source.insert(source.begin(), static_cast<size_t>(skew), 0.0f);
  std::vector<float> before = random_floats(numel, rng, special), after = before;
  after.resize(static_cast<size_t>(numel + kGuard));
  std::memset(after.data() + numel, kPoison, kGuard * sizeof(float));
  std::vector<uint8_t> wire(static_cast<size_t>(wire_bytes + kGuard), kPoison);
  quantize_bucket(isa, source.data() + skew, numel, world_size, scale, feedback ? after.data() : nullptr, wire.data());

  int64_t wrong = 0, wrong_residual = 0, out_of_bound = 0;
  for (int64_t begin = 0; begin < world_size * per_shard; begin += kInt8Block) {
    std::vector<double> v(kInt8Block, 0.0);
    for (int64_t i = begin; i < std::min(numel, begin + kInt8Block); ++i) {
      double& value = v[static_cast<size_t>(i - begin)];
      value = single(static_cast<double>(source[static_cast<size_t>(skew + i)]) * scale);
      if (feedback) value = single(value + before[static_cast<size_t>(i)]);
    }
    const Block expected = quantized(v);
    uint8_t* const shard = wire.data() + begin / per_shard * int8_shard_bytes(per_shard);
    const int8_t* const values = values_at(shard, begin % per_shard);
    const double step = *scales_at(shard, per_shard, begin % per_shard);
    compare(expected, values, static_cast<float>(step), wrong);
    for (int64_t i = begin; i < std::min(numel, begin + kInt8Block); ++i) {
      const auto in_block = static_cast<size_t>(i - begin);
      if (feedback) wrong_residual += !same(after[static_cast<size_t>(i)], expected.lost[in_block]);
      // Whatever the reference says: at most half a step off, and two roundings, of 1 / s and of the product (2**-24 of 127 each).
      const double error = std::fabs(v[in_block] - values[in_block] * step);
      if (std::isfinite(step)) out_of_bound += !(error <= step * (0.5 + 127 * 0x1p-23));
    }
  }
  const auto where = [&](const char* what, long count) {
    check(count == 0, "%s quantize %ld elements + %ld, %ld ranks, feedback %d, special %d: %ld wrong %s", isa.isa, long(numel), long(skew),
          long(world_size), feedback, special, count, what);
  };
  where("values or scales", long(wrong));
  where("residuals", long(wrong_residual));
  where("errors above half a step", long(out_of_bound));
  where("bytes outside", !all_poison(wire.data() + wire_bytes, kGuard) + !all_poison(after.data() + numel, kGuard * sizeof(float)));
}

void test_reduce(const cpu::Exchangers& isa, int64_t per_shard, int64_t world_size, bool feedback, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(per_shard + world_size));
  std::vector<uint8_t> shards = random_wire(per_shard, world_size, rng, special);
  std::vector<float> before = random_floats(per_shard, rng, special), after = before;
  const int64_t num_bytes = int8_shard_bytes(per_shard);
  std::vector<uint8_t> out(static_cast<size_t>(num_bytes + kGuard), kPoison);
  reduce_shards(isa, shards.data(), per_shard, world_size, out.data(), feedback ? after.data() : nullptr);
  int64_t wrong = 0, wrong_error = 0;
  for (int64_t begin = 0; begin < per_shard; begin += kInt8Block) {
    std::vector<double> sum(kInt8Block);
    for (int64_t i = 0; i < kInt8Block; ++i) {
      double& a = sum[static_cast<size_t>(i)];
      for (int64_t r = 0; r < world_size; ++r) {
        uint8_t* const shard = shards.data() + r * num_bytes;
        const double product = single(static_cast<double>(values_at(shard, begin)[i]) * *scales_at(shard, per_shard, begin));
        a = r == 0 ? product : single(a + product);
      }
      if (feedback) a = single(a + before[static_cast<size_t>(begin + i)]);
    }
    const Block expected = quantized(sum);
    compare(expected, values_at(out.data(), begin), *scales_at(out.data(), per_shard, begin), wrong);
    for (int64_t i = 0; feedback && i < kInt8Block; ++i) wrong_error += !same(after[static_cast<size_t>(begin + i)], expected.lost[i]);
  }
  check(wrong == 0, "%s reduce_int8 %ld elements, %ld ranks, special %d: %ld wrong", isa.isa, long(per_shard), long(world_size), special,
        long(wrong));
  check(wrong_error == 0, "%s reduce_int8 %ld elements, %ld ranks: %ld wrong errors", isa.isa, long(per_shard), long(world_size),
        long(wrong_error));
  check(all_poison(out.data() + num_bytes, kGuard), "%s reduce_int8 wrote outside", isa.isa);
}

void test_dequantize(const cpu::Exchangers& isa, int64_t numel, int64_t world_size, int64_t skew, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 10 + world_size));
  const int64_t per_shard = shard_numel(numel, world_size);
  std::vector<uint8_t> wire = random_wire(per_shard, world_size, rng, special);
  std::vector<float> target(static_cast<size_t>(skew + numel + kGuard));
  std::memset(target.data(), kPoison, target.size() * sizeof(float));
  const cpu::Tally tally = dequantize_bucket(isa, wire.data(), numel, world_size, target.data() + skew);
  int64_t wrong = 0, nonfinite = 0;
  double sumsq = 0;
  for (int64_t i = 0; i < numel; ++i) {
    uint8_t* const shard = wire.data() + i / per_shard * int8_shard_bytes(per_shard);
    const double expected = single(static_cast<double>(*values_at(shard, i % per_shard)) * *scales_at(shard, per_shard, i % per_shard));
    wrong += !same(target[static_cast<size_t>(skew + i)], expected);
    nonfinite += !std::isfinite(expected);
    sumsq += expected * expected;
  }
  check(wrong == 0, "%s dequantize %ld elements, %ld ranks: %ld wrong", isa.isa, long(numel), long(world_size), long(wrong));
  check(tally.nonfinite == nonfinite, "%s dequantize %ld elements: counted %ld non-finite of %ld", isa.isa, long(numel), long(tally.nonfinite),
        long(nonfinite));
  if (!special) {  // FP32 sums of at most 256 squares, each of which loses what is below 2**-149
    check(std::fabs(tally.sumsq - sumsq) <= 256 * 0x1p-24 * sumsq + static_cast<double>(numel) * 0x1p-149,
          "%s dequantize %ld elements: sum of squares %g, expected %g", isa.isa, long(numel), tally.sumsq, sumsq);
  }
  check(all_poison(target.data(), static_cast<size_t>(skew) * sizeof(float)) &&
            all_poison(target.data() + skew + numel, kGuard * sizeof(float)),
        "%s dequantize %ld elements: wrote outside", isa.isa, long(numel));
}

// --- 16 bits ----------------------------------------------------------------------------------------------------------

// What narrowing `value` gives and loses.
void expect_narrowed(double value, Dtype dtype, uint16_t got, const float* lost, int64_t& wrong) {
  const double expected = rounded(value, dtype), rest = single(value - expected);
  wrong += !same(value_of(got, dtype), expected);
  if (lost != nullptr) wrong += !same(*lost, std::isfinite(rest) ? rest : 0.0);
}

void test_sum(const cpu::Exchangers& isa, Dtype dtype, int64_t numel, int64_t world_size, int64_t skew, bool feedback, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 10 + world_size));
  const std::vector<char> bytes = random_elements(dtype, skew + world_size * numel, rng, special);
  const auto* const shards = reinterpret_cast<const uint16_t*>(bytes.data()) + skew;
  std::vector<uint16_t> out(static_cast<size_t>(skew + numel + kGuard));
  std::memset(out.data(), kPoison, out.size() * 2);
  std::vector<float> before = random_floats(numel, rng, special), after = before;
  isa.sum_shards(shards, numel, world_size, out.data() + skew, dtype, numel, feedback ? after.data() : nullptr);
  int64_t wrong = 0;
  for (int64_t i = 0; i < numel; ++i) {
    double sum = value_of(shards[i], dtype);
    for (int64_t r = 1; r < world_size; ++r) sum = single(sum + value_of(shards[r * numel + i], dtype));
    if (feedback) sum = single(sum + before[static_cast<size_t>(i)]);
    expect_narrowed(sum, dtype, out[static_cast<size_t>(skew + i)], feedback ? &after[static_cast<size_t>(i)] : nullptr, wrong);
  }
  check(wrong == 0, "%s sum_shards %s, %ld elements + %ld, %ld ranks, feedback %d, special %d: %ld wrong", isa.isa, name_of(dtype),
        long(numel), long(skew), long(world_size), feedback, special, long(wrong));
  check(all_poison(out.data(), static_cast<size_t>(skew) * 2) && all_poison(out.data() + skew + numel, kGuard * 2),
        "%s sum_shards %ld elements: wrote outside", isa.isa, long(numel));
}

void test_feedback(const cpu::Exchangers& isa, Dtype wire, int64_t numel, int64_t skew, float scale, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 10 + skew));
  const std::vector<char> bytes = random_elements(Dtype::f32, skew + numel, rng, special);
  const auto* const source = reinterpret_cast<const float*>(bytes.data()) + skew;
  std::vector<float> before = random_floats(numel, rng, special), after = before;
  std::vector<uint16_t> packed(static_cast<size_t>(skew + numel + kGuard));
  std::memset(packed.data(), kPoison, packed.size() * 2);
  isa.pack_with_feedback(source, scale, after.data(), packed.data() + skew, wire, numel);
  int64_t wrong = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const double value = single(single(static_cast<double>(source[i]) * scale) + before[static_cast<size_t>(i)]);
    expect_narrowed(value, wire, packed[static_cast<size_t>(skew + i)], &after[static_cast<size_t>(i)], wrong);
  }
  check(wrong == 0, "%s pack_with_feedback %s, %ld elements + %ld, special %d: %ld wrong", isa.isa, name_of(wire), long(numel), long(skew),
        special, long(wrong));
  check(all_poison(packed.data(), static_cast<size_t>(skew) * 2) && all_poison(packed.data() + skew + numel, kGuard * 2),
        "%s pack_with_feedback %ld elements: wrote outside", isa.isa, long(numel));
}

void test_format() {
  check(shard_numel(0, 4) == 0 && shard_numel(1, 4) == 1024 && shard_numel(4096, 4) == 1024 && shard_numel(4097, 4) == 2048, "shard_numel");
  check(shard_numel((int64_t{1} << 40) + 1, 2) == (int64_t{1} << 39) + 1024, "shard_numel past 2**32");
  check(int8_shard_bytes(1024) == 1040 && int8_shard_bytes(0) == 0, "int8_shard_bytes");
}

}  // namespace

int main() {
  constexpr int64_t kNumels[] = {0, 1, 7, 255, 256, 257, 1023, 1024, 1025, 2049, 10007, 300001};
  test_format();
  for (const cpu::Exchangers* isa = cpu::all_exchangers(); isa->isa != nullptr; ++isa) {
    for (const bool special : {false, true}) {
      for (const int64_t world_size : {1, 2, 3, 8}) {
        for (const int64_t per_shard : {1024, 2048, 5120}) {
          for (const bool feedback : {false, true}) test_reduce(*isa, per_shard, world_size, feedback, special);
        }
        for (const int64_t numel : kNumels) {
          for (const int64_t skew : {0, 1, 3}) {
            test_dequantize(*isa, numel, world_size, skew, special);
            for (const bool feedback : {false, true}) {
              test_quantize(*isa, numel, world_size, skew, world_size == 2 ? 0.5f : 1.0f / 3, feedback, special);
              for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
                if (numel < 20000) test_sum(*isa, dtype, numel, world_size, skew, feedback, special);
              }
            }
          }
        }
      }
      for (const int64_t numel : kNumels) {
        for (const int64_t skew : {0, 1, 3}) {
          for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) test_feedback(*isa, dtype, numel, skew, 1.0f / 3, special);
        }
      }
    }
    std::printf("%s checked\n", isa->isa);
  }
  return finish();
}
