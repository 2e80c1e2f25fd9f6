// AVX-512 loops of the gradient exchange.
#include "cpu/vector_avx512.h"

#include "cpu/exchange_loops.h"

namespace gpualloc::cpu {
const Exchangers avx512_exchangers{"avx512", sum_shards_loop, quantize_loop, reduce_int8_loop, dequantize_loop, pack_with_feedback_loop};
}
