// Portable converters: one element at a time, for processors without AVX2 and for other architectures.
#include <algorithm>

#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

struct Vector {
  static constexpr int64_t kWidth = 1;
  static constexpr bool kStreams = false;
  float value = 0;

  template <Dtype D>
  static Vector load(const void* from) { return {widen<D>(from)}; }
  template <Dtype D, bool kStream>
  void store(void* to) const { narrow<D>(value, to); }
  template <Dtype D, bool kStream>
  static void store_two(Vector first, Vector second, void* to) {
    first.store<D, kStream>(to);
    second.store<D, kStream>(static_cast<char*>(to) + kWidth * size_of(D));
  }

  Vector scaled(float scale) const { return {value * scale}; }
  void add_square(Vector other) { value += other.value * other.value; }
  float sum() const { return value; }
  Vector on_wire(float wire_scale, float limit, Vector& absmax) const { return {cpu::on_wire(value, wire_scale, limit, absmax.value)}; }

  void raise(Vector other) { value = float_of(std::max(max_bits(), other.max_bits())); }
  uint32_t max_bits() const { return bits_of(value) & kMagnitudeBits; }
  int count_from(uint32_t bits) const { return max_bits() >= bits; }
};

}  // namespace
}  // namespace gpualloc::cpu

#include "cpu/convert_loops.h"

namespace gpualloc::cpu {
const Converters scalar_converters{"scalar", pack_loop, unpack_loop, [] {}};
}
