// Portable loops of the gradient exchange, for processors without AVX2 and for other architectures.
#include "cpu/lane.h"

namespace gpualloc::cpu {
namespace {
using Vector = Lane;
}
}  // namespace gpualloc::cpu

#include "cpu/exchange_loops.h"

namespace gpualloc::cpu {
const Exchangers scalar_exchangers{"scalar", sum_shards_loop, quantize_loop, reduce_int8_loop, dequantize_loop, pack_with_feedback_loop};
}
