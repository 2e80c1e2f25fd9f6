// pack and unpack on the CPU: the stretches cut into blocks, the blocks shared out over torch's threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/convert.h"
#include "ops.h"
#include "wire_scale.h"

namespace gpualloc {
namespace {

// Fixed, so that the sum of squares does not depend on the number of threads.
constexpr int64_t kBlock = 32768;
constexpr int64_t kBlocksPerThread = 2;  // fewer are not worth waking a thread

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// *target = max(*target, value), also against other threads. Magnitudes are ordered as their bits are.
void raise_to(uint32_t* target, uint32_t value) {
  uint32_t seen = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(target, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

const WireState* state_of(const Counters& counters) { return static_cast<const WireState*>(counters.wire_state->data_ptr()); }

// Calls convert(segment, offset, numel, wire) for every block of every segment, in parallel, and adds what it returns to the counters.
template <typename Convert>
void for_each_block(const Segments& segments, const at::Tensor& flat, const Counters& counters, const Convert& convert) {
  thread_local std::vector<int64_t> first_block;  // of each segment, then the number of all; kept, so that no call allocates
  thread_local std::vector<double> block_sumsq;
  first_block.assign(1, 0);
  for (const Segment& segment : segments) first_block.push_back(first_block.back() + (segment.numel + kBlock - 1) / kBlock);
  const int64_t num_blocks = first_block.back();
  block_sumsq.resize(num_blocks);
  const auto& starts = first_block;  // the calling thread's, also inside the workers
  auto* const sums = block_sumsq.data();
  auto* const wire = static_cast<uint16_t*>(flat.data_ptr());
  std::atomic<int64_t> nonfinite{0};
  uint32_t absmax_bits = 0;

  at::parallel_for(0, num_blocks, kBlocksPerThread, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    uint32_t largest = 0;
    auto k = static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1);
    for (int64_t block = begin; block < end; ++block) {
      while (starts[k + 1] <= block) ++k;
      const Segment& segment = segments[k];
      const int64_t offset = (block - starts[k]) * kBlock;
      const int64_t numel = std::min(kBlock, segment.numel - offset);
      void* const data = static_cast<char*>(segment.data) + offset * size_of(segment.dtype);
      const cpu::Tally tally = convert(data, segment.dtype, wire + segment.begin + offset, numel);
      sums[block] = tally.sumsq;
      found += tally.nonfinite;
      largest = std::max(largest, bits_of(tally.absmax));
    }
    if (found != 0) nonfinite += found;
    raise_to(&absmax_bits, largest);
  });

  // Hooks of several buckets may add to one counter from different threads.
  if (counters.nonfinite.has_value() && nonfinite != 0) {
    __atomic_fetch_add(counters.nonfinite->data_ptr<int64_t>(), nonfinite.load(), __ATOMIC_RELAXED);
  }
  if (counters.wire_state.has_value()) {
    raise_to(static_cast<uint32_t*>(counters.wire_state->data_ptr()) + offsetof(WireState, absmax) / sizeof(float), absmax_bits);
  }
  if (counters.sumsq.has_value()) *counters.sumsq->data_ptr<double>() += std::accumulate(sums, sums + num_blocks, 0.0);
}

Dtype wire_dtype(const at::Tensor& flat) { return flat.scalar_type() == at::kHalf ? Dtype::f16 : Dtype::bf16; }

}  // namespace

void pack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters) {
  const cpu::Converters& converters = cpu::converters();
  if (counters.wire_state.has_value()) scale *= state_of(counters)->scale;
  for_each_block(segments, flat, counters, [&, wire = wire_dtype(flat)](void* data, Dtype dtype, uint16_t* to, int64_t numel) {
    return converters.pack(data, dtype, to, wire, numel, scale);
  });
}

void unpack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters) {
  const cpu::Converters& converters = cpu::converters();
  if (counters.wire_state.has_value()) scale *= state_of(counters)->inverse;
  const bool want_sumsq = counters.sumsq.has_value();
  for_each_block(segments, flat, counters, [&, wire = wire_dtype(flat)](void* data, Dtype dtype, uint16_t* from, int64_t numel) {
    return converters.unpack(from, wire, data, dtype, numel, scale, want_sumsq);
  });
}

}  // namespace gpualloc
