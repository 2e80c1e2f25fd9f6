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
constexpr uint16_t kPoison = 0x5a5a;

// pack of `numel` elements that start `skew` elements after an aligned address, on both sides.
void test_pack(const cpu::Converters& isa, Dtype dtype, Dtype wire, int64_t numel, int64_t skew, float scale, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 100 + skew));
  const std::vector<char> source = random_elements(dtype, numel + skew, rng, special);
  std::vector<uint16_t> packed(static_cast<size_t>(numel + skew + 1), kPoison);
  const char* const from = source.data() + skew * size_of(dtype);
  const cpu::Tally tally = isa.pack(from, dtype, packed.data() + skew, wire, numel, scale);
  int64_t nonfinite = 0, wrong = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const double expected = rounded(static_cast<float>(load(from, dtype, i)) * scale, wire);
    nonfinite += !std::isfinite(expected);
    wrong += !same(value_of(packed[static_cast<size_t>(skew + i)], wire), expected);
  }
  check(wrong == 0, "%s pack %s -> %s, %ld elements + %ld, scale %g: %ld wrong", isa.isa, name_of(dtype), name_of(wire), long(numel),
        long(skew), scale, long(wrong));
  check(tally.nonfinite == nonfinite, "%s pack %s -> %s, %ld elements: counted %ld non-finite of %ld", isa.isa, name_of(dtype),
        name_of(wire), long(numel), long(tally.nonfinite), long(nonfinite));
  const bool outside = std::any_of(packed.begin(), packed.begin() + skew, [](uint16_t bits) { return bits != kPoison; });
  check(!outside && packed.back() == kPoison, "%s pack %s: wrote outside", isa.isa, name_of(dtype));
}

void test_unpack(const cpu::Converters& isa, Dtype dtype, Dtype wire, int64_t numel, int64_t skew, float scale, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 100 + skew + 1));
  const std::vector<char> source = random_elements(wire, numel + skew, rng, special);
  std::vector<char> target(static_cast<size_t>((numel + skew) * size_of(dtype)) + 8, 0x5a);
  const auto* const from = reinterpret_cast<const uint16_t*>(source.data()) + skew;
  char* const to = target.data() + skew * size_of(dtype);
  const cpu::Tally tally = isa.unpack(from, wire, to, dtype, numel, scale, true);
  int64_t nonfinite = 0, wrong = 0;
  double sumsq = 0, absmax = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const float value = static_cast<float>(value_of(from[i], wire)) * scale;
    const double expected = stored(value, dtype);
    nonfinite += !std::isfinite(expected);
    sumsq += static_cast<double>(value) * value;
    wrong += !same(load(to, dtype, i), expected);
    absmax = std::isnan(expected) || std::fabs(expected) > absmax ? std::fabs(expected) : absmax;  // NaN, once met, stays
  }
  if (dtype == Dtype::f32) check(same(tally.absmax, absmax), "%s unpack: largest %g, expected %g", isa.isa, double(tally.absmax), absmax);
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
  check(std::all_of(target.end() - 8, target.end(), [](char byte) { return byte == 0x5a; }), "%s unpack: wrote past the end", isa.isa);
}

// One step of the wire scale.
void test_wire_scale() {
  const auto scale_after = [](WireState state, bool overflowed) { return next_state(state, overflowed).scale; };
  check(scale_after({1, 1, 0.5f, 0}, false) == 2, "grows by two a step");
  check(scale_after({1, 1, 0.5f, 3}, false) == 1, "does not grow while held");
  check(next_state({1, 1, 0.5f, 3}, false).hold == 2, "is held one step less");
  check(scale_after({4096, 0, 0.5f, 0}, false) == 4096, "stays where the largest gradient is at 2**11");
  check(scale_after({1, 1, 1e5f, 0}, false) == 0x1p-5f, "falls at once");
  check(scale_after({8, 0, INFINITY, 0}, true) == 4, "halves on overflow");
  check(next_state({8, 0, NAN, 0}, true).hold == kHoldSteps, "is held after an overflow");
  check(scale_after({kMinScale, 0, INFINITY, 0}, true) == kMinScale && scale_after({kMaxScale, 0, 1e-30f, 0}, false) == kMaxScale, "has ends");
  check(scale_after({8, 0, 0, 0}, false) == 16 && scale_after({kBlindScale, 0, 0, 0}, false) == kBlindScale, "tries a larger one on zeros");
  check(scale_after({4096, 0, 0, 0}, false) == 4096, "is not lowered by zeros");
  const WireState next = next_state({1, 1, 3e-40f, 0}, false);
  check(next.scale == 2 && next.inverse == 0.5f && next.absmax == 0, "a denormal gradient");
}

// All 65,536 values of a 16-bit format, widened exactly and narrowed back to the same bits.
void test_all_halves(const cpu::Converters& isa, Dtype wire) {
  std::vector<uint16_t> halves(65536), back(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> wide(65536);
  isa.unpack(halves.data(), wire, wide.data(), Dtype::f32, 65536, 1.0f, false);
  isa.pack(wide.data(), Dtype::f32, back.data(), wire, 65536, 1.0f);
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
        for (const int64_t numel : {0, 1, 7, 8, 15, 16, 17, 33, 2047, 2048, 2049, 10001}) {
          for (const int64_t skew : {0, 1, 3}) {
            for (const bool special : {false, true}) {
              test_pack(*isa, dtype, wire, numel, skew, numel % 2 == 0 ? 0.25f : 1.0f / 3, special);
              test_unpack(*isa, dtype, wire, numel, skew, numel % 2 == 0 ? 1.0f : 3.7f, special);
            }
          }
        }
      }
    }
    std::printf("%s checked\n", isa->isa);
  }
  test_wire_scale();
  return finish();
}
