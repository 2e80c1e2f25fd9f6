// Every instruction set of the CPU converters against the FP64 reference.
#include <algorithm>

#include "cpu/convert.h"
#include "tests/reference.h"
#include "wire_scale.h"

using namespace gpualloc;
using namespace gpualloc::test;

namespace {

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f64};
constexpr Dtype kWires[] = {Dtype::f16, Dtype::bf16};

// Poisoned memory that starts at a cache line.
struct Target {
  explicit Target(int64_t bytes) : memory(static_cast<size_t>(bytes) + 64, 0x5a), bytes(bytes) {
    data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  }
  bool is_poison(int64_t begin, int64_t end) const {
    return std::all_of(data + begin, data + end, [](char byte) { return byte == 0x5a; });
  }
  std::vector<char> memory;
  int64_t bytes;
  char* data;
};

// pack of `numel` elements that start `skew` elements after a cache line's start, on both sides.
void test_pack(const cpu::Converters& isa, Dtype dtype, Dtype wire, int64_t numel, int64_t skew, float scale, bool special, bool stream) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 100 + skew));
  const std::vector<char> source = random_elements(dtype, numel + skew, rng, special);
  const Target packed(2 * (numel + skew + 32));
  auto* const to = reinterpret_cast<uint16_t*>(packed.data) + skew;
  const char* const from = source.data() + skew * size_of(dtype);
  const cpu::Tally tally = isa.pack(from, dtype, to, wire, numel, scale, nullptr, stream);
  isa.fence();
  int64_t nonfinite = 0, wrong = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const double expected = rounded(static_cast<float>(load(from, dtype, i)) * scale, wire);
    nonfinite += !std::isfinite(expected);
    wrong += !same(value_of(to[i], wire), expected);
  }
  check(wrong == 0, "%s pack %s -> %s, %ld elements + %ld, scale %g: %ld wrong", isa.isa, name_of(dtype), name_of(wire), long(numel),
        long(skew), scale, long(wrong));
  check(tally.nonfinite == nonfinite, "%s pack %s -> %s, %ld elements: counted %ld non-finite of %ld", isa.isa, name_of(dtype),
        name_of(wire), long(numel), long(tally.nonfinite), long(nonfinite));
  check(packed.is_poison(0, 2 * skew) && packed.is_poison(2 * (skew + numel), packed.bytes), "%s pack %s: wrote outside", isa.isa, name_of(dtype));
}

void test_unpack(const cpu::Converters& isa, Dtype dtype, Dtype wire, int64_t numel, int64_t skew, float scale, bool special, bool stream) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 100 + skew + 1));
  const std::vector<char> source = random_elements(wire, numel + skew, rng, special);
  const Target target((numel + skew) * size_of(dtype) + 64);
  const auto* const from = reinterpret_cast<const uint16_t*>(source.data()) + skew;
  char* const to = target.data + skew * size_of(dtype);
  const cpu::Tally tally = isa.unpack(from, wire, to, dtype, numel, scale, true, stream);
  const double plain_sumsq = isa.unpack(from, wire, to, dtype, numel, scale, true, false).sumsq;
  check(same(tally.sumsq, plain_sumsq), "%s unpack: sum of squares %.17g, without streaming %.17g", isa.isa, tally.sumsq, plain_sumsq);
  isa.unpack(from, wire, to, dtype, numel, scale, false, stream);
  isa.fence();
  int64_t nonfinite = 0, wrong = 0;
  double sumsq = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const float value = static_cast<float>(value_of(from[i], wire)) * scale;
    const double expected = stored(value, dtype);
    nonfinite += !std::isfinite(expected);
    sumsq += static_cast<double>(value) * value;
    wrong += !same(load(to, dtype, i), expected);
  }
  check(wrong == 0, "%s unpack %s -> %s, %ld elements + %ld, scale %g: %ld wrong", isa.isa, name_of(wire), name_of(dtype), long(numel),
        long(skew), scale, long(wrong));
  check(tally.nonfinite == nonfinite, "%s unpack %s -> %s, %ld elements: counted %ld non-finite of %ld", isa.isa, name_of(wire),
        name_of(dtype), long(numel), long(tally.nonfinite), long(nonfinite));
  // FP32 sums of at most 2048 squares, all positive: below 2048 roundings of 2**-24 each.
  if (!special && std::isfinite(sumsq) && sumsq < 1e37) {
    // A square below 2**-149 is lost in FP32.
    check(std::fabs(tally.sumsq - sumsq) <= 2048 * 0x1p-24 * sumsq + static_cast<double>(numel) * 0x1p-149, "%s unpack %s -> %s, %ld elements: sum of squares %g, expected %g",
          isa.isa, name_of(wire), name_of(dtype), long(numel), tally.sumsq, sumsq);
  }
  const int64_t size = size_of(dtype);
  check(target.is_poison(0, skew * size) && target.is_poison((skew + numel) * size, target.bytes), "%s unpack %s: wrote outside", isa.isa, name_of(dtype));
}

// pack with a wire state whose limit some elements exceed: the FP64 reference of wire_scale.h.
void test_pack_on_wire(const cpu::Converters& isa, Dtype dtype, Dtype wire, int64_t numel, float scale, float wire_scale, bool special,
                       bool stream) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel));
  const std::vector<char> source = random_elements(dtype, numel, rng, special);
  std::vector<uint16_t> packed(static_cast<size_t>(numel));
  const WireState state = first_state(wire_scale, 64, false);  // a limit of 512
  const cpu::Tally tally = isa.pack(source.data(), dtype, packed.data(), wire, numel, scale, &state, stream);
  double absmax = 0;
  int64_t nonfinite = 0, wrong = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const float u = static_cast<float>(load(source.data(), dtype, i)) * scale;
    double v = u;
    if (std::isfinite(u)) {
      absmax = std::max(absmax, std::fabs(v));
      v = std::clamp(v * wire_scale, -512.0, 512.0);
    }
    nonfinite += !std::isfinite(u);
    wrong += !same(value_of(packed[static_cast<size_t>(i)], wire), rounded(v, wire));
  }
  check(wrong == 0, "%s pack %s -> %s on the wire, %ld elements, scales %g and %g: %ld wrong", isa.isa, name_of(dtype), name_of(wire),
        long(numel), scale, wire_scale, long(wrong));
  check(tally.absmax == absmax, "%s pack %s on the wire: largest %g, expected %g", isa.isa, name_of(dtype), double(tally.absmax), absmax);
  check(tally.nonfinite == nonfinite, "%s pack %s on the wire: counted %ld non-finite of %ld", isa.isa, name_of(dtype),
        long(tally.nonfinite), long(nonfinite));
}

// One step of the wire scale of one rank, whose limit is 2**15: the largest gradient is brought to between 2**11 and 2**12.
void test_next_state() {
  const auto after = [](float scale, float absmax, bool saturated, bool nonfinite, bool started = true) {
    const WireState next = next_state(first_state(scale, 1, started), absmax, saturated, nonfinite);
    check(next.inverse * next.scale == 1 && next.absmax == 0 && next.saturated == 0 && next.limit == 32768, "a fresh step");
    return next.scale;
  };
  check(after(1, 0.5f, false, false) == 2, "grows by two a step");
  check(after(1, 0.5f, false, false, false) == 8192, "takes its first figures as they are");
  check(after(8192, 0.5f, false, false) == 8192 && after(8192, 0.75f, false, false) == 4096, "aims at limit / 8 and not above");
  check(after(4096, std::nextafter(0.5f, 1.0f), false, false) == 4096 && after(4096, 1.0f, false, false) == 4096, "stays in its octave");
  check(after(1, 1e5f, false, false) == 0x1p-5f, "falls at once");
  check(after(8, 512, true, false) == 4, "halves when it saturated and the target is not lower");
  check(after(8, 1e5f, true, false) == 0x1p-5f, "falls to the target when it saturated");
  check(after(8, 1, false, true) == 4 && after(8, 0, false, true) == 4, "halves on non-finite results");
  check(after(8, 0, false, true, false) == 4, "halves on non-finite results before its first figures");
  check(after(8, 0, false, false) == 8, "is kept by zeros");
  check(after(kMinScale, 3e38f, true, true) == kMinScale && after(kMinScale, 3e38f, false, false) == kMinScale, "has a lower end");
  check(after(kMaxScale, 1e-30f, false, false) == kMaxScale && after(1, 1e-45f, false, false, false) == kMaxScale, "has an upper end");
  const WireState blind = next_state(first_state(1, 1, false), 0, false, false);
  check(next_state(blind, 0.5f, false, false).scale == 8192, "zeros are not its first figures");
  check(next_state(next_state(blind, 0.5f, false, false), 1e-3f, false, false).scale == 16384, "and what follows them is not either");
  // Any limit, also one that is no power of two: headroom of 8 to 16, and the sum of the ranks' largest stays below FP16's inf
  // although each of world_size roundings went up.
  std::mt19937_64 rng(3);
  std::uniform_real_distribution<float> fraction(1, 2);
  for (int world_size = 1; world_size <= 2046; world_size += 1 + world_size / 7) {
    const float limit = first_state(1, world_size, false).limit;
    for (int exponent = -12; exponent <= 12; ++exponent) {
      const float absmax = std::ldexp(fraction(rng), exponent);
      const float headroom = limit / (absmax * target_scale(absmax, limit));
      check(headroom >= 8 && headroom < 16, "%d ranks, largest %g: headroom %g", world_size, double(absmax), double(headroom));
    }
    double sum = 0;
    for (int rank = 0; rank < world_size; ++rank) sum += rounded(limit, Dtype::f16) + 16;
    check(sum < kF16.overflow, "%d ranks: a sum of limits reaches %g", world_size, sum);
  }
}

// All 65,536 values of a 16-bit format, widened exactly and narrowed back to the same bits.
void test_all_halves(const cpu::Converters& isa, Dtype wire) {
  std::vector<uint16_t> halves(65536), back(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> wide(65536);
  isa.unpack(halves.data(), wire, wide.data(), Dtype::f32, 65536, 1.0f, false, false);
  isa.pack(wide.data(), Dtype::f32, back.data(), wire, 65536, 1.0f, nullptr, false);
  int64_t wrong = 0;
  for (size_t i = 0; i < halves.size(); ++i) {
    const double value = value_of(halves[i], wire);
    wrong += !same(wide[i], value) || (std::isnan(value) ? !std::isnan(value_of(back[i], wire)) : back[i] != halves[i]);
  }
  check(wrong == 0, "%s %s: %ld of 65536 values wrong", isa.isa, name_of(wire), long(wrong));
}

}  // namespace

int main() {
  for (const cpu::Converters* isa = cpu::all_converters(); isa->isa != nullptr; ++isa) {
    for (const Dtype wire : kWires) {
      test_all_halves(*isa, wire);
      for (const Dtype dtype : kDtypes) {
        for (const int64_t numel : {0, 1, 7, 8, 15, 16, 17, 33, 63, 64, 97, 2047, 2048, 2049, 10001}) {
          for (const int variant : {0, 1, 2, 3}) {
            const bool special = variant & 1, stream = variant & 2;
            for (const int64_t skew : {0, 1, 3, 16}) {
              test_pack(*isa, dtype, wire, numel, skew, numel % 2 == 0 ? 0.25f : 1.0f / 3, special, stream);
              test_unpack(*isa, dtype, wire, numel, skew, numel % 2 == 0 ? 1.0f : 3.7f, special, stream);
            }
            test_pack_on_wire(*isa, dtype, wire, numel, 1.0f / 3, 64, special, stream);
            test_pack_on_wire(*isa, dtype, wire, numel, 1.0f, 0.25f, special, stream);
          }
        }
      }
    }
    std::printf("%s checked\n", isa->isa);
  }
  test_next_state();
  return finish();
}
