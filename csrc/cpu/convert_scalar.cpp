// Portable converters: one element at a time, for processors without AVX2 and for other architectures.
#include "cpu/narrow.h"

namespace gpualloc::cpu {
namespace {

struct Vector {
  static constexpr int64_t kWidth = 1;
  float value = 0;

  template <Dtype D>
  static Vector load(const void* from) { return {widen<D>(from)}; }
  template <Dtype D>
  void store(void* to) const { narrow<D>(value, to); }
  Vector scaled(float scale) const { return {value * scale}; }
  void add_square(Vector other) { value += other.value * other.value; }
  float sum() const { return value; }
};

}  // namespace
}  // namespace gpualloc::cpu

#include "cpu/convert_loops.h"

namespace gpualloc::cpu {
const Converters scalar_converters{"scalar", pack_loop, unpack_loop};
}
