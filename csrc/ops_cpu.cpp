// pack and unpack on the CPU: the stretches cut into blocks, the blocks shared out over torch's threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
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

// Results of this size are stored past the caches, which spares reading their memory first. An EPYC with 32 MiB of L3 (AVX-512,
// 2026-11, pack followed by a read of its result, as all-reduce does): where the result was in no cache before, as in a training
// step, streaming takes 0.98 of the time at 2 MB, 0.94 at 4 MB, 0.90 from 6 MB on; where it was, 1.16, 1.14, 1.08 and 0.88
// from 13 MB on.
constexpr int64_t kStreamBytes = 4 << 20;

// *target = max(*target, value), also against other threads; neither is below zero.
void raise_to(float* target, float value) {
  float seen;
  __atomic_load(target, &seen, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange(target, &seen, &value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

WireState* state_of(const Counters& counters) {
  return counters.wire_state.has_value() ? static_cast<WireState*>(counters.wire_state->data_ptr()) : nullptr;
}

// Calls convert(data, dtype, wire, numel, stream) for every block of every segment, in parallel, and adds what it returns to the
// counters. result_bytes: what all calls together write.
template <typename Convert>
void for_each_block(const Segments& segments, const at::Tensor& flat, int64_t result_bytes, const Counters& counters, const Convert& convert) {
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
  float absmax = 0;
  const bool stream = result_bytes >= kStreamBytes;

  at::parallel_for(0, num_blocks, kBlocksPerThread, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    float largest = 0;
    auto k = static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1);
    for (int64_t block = begin; block < end; ++block) {
      while (starts[k + 1] <= block) ++k;
      const Segment& segment = segments[k];
      const int64_t offset = (block - starts[k]) * kBlock;
      const int64_t numel = std::min(kBlock, segment.numel - offset);
      void* const data = static_cast<char*>(segment.data) + offset * size_of(segment.dtype);
      const cpu::Tally tally = convert(data, segment.dtype, wire + segment.begin + offset, numel, stream);
      sums[block] = tally.sumsq;
      found += tally.nonfinite;
      largest = std::max(largest, tally.absmax);
    }
    if (stream) cpu::converters().fence();
    if (found != 0) nonfinite += found;
    raise_to(&absmax, largest);
  });

  // Hooks of several buckets may add to one counter from different threads.
  if (counters.nonfinite.has_value() && nonfinite != 0) {
    __atomic_fetch_add(counters.nonfinite->data_ptr<int64_t>(), nonfinite.load(), __ATOMIC_RELAXED);
  }
  if (WireState* const state = state_of(counters)) {
    raise_to(&state->absmax, absmax);
    if (absmax * state->scale > state->limit) raise_to(&state->saturated, 1);
  }
  if (counters.sumsq.has_value()) *counters.sumsq->data_ptr<double>() += std::accumulate(sums, sums + num_blocks, 0.0);
}

Dtype wire_dtype(const at::Tensor& flat) { return flat.scalar_type() == at::kHalf ? Dtype::f16 : Dtype::bf16; }

}  // namespace

void pack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters) {
  const cpu::Converters& converters = cpu::converters();
  const WireState* const state = state_of(counters);
  const auto convert = [&, wire = wire_dtype(flat)](void* data, Dtype dtype, uint16_t* to, int64_t numel, bool stream) {
    return converters.pack(data, dtype, to, wire, numel, scale, state, stream);
  };
  for_each_block(segments, flat, static_cast<int64_t>(flat.nbytes()), counters, convert);
}

void unpack_cpu(const Segments& segments, const at::Tensor& flat, float scale, const Counters& counters) {
  const cpu::Converters& converters = cpu::converters();
  if (const WireState* const state = state_of(counters)) scale *= state->inverse;
  const bool want_sumsq = counters.sumsq.has_value();
  const auto convert = [&, wire = wire_dtype(flat)](void* data, Dtype dtype, uint16_t* from, int64_t numel, bool stream) {
    return converters.unpack(from, wire, data, dtype, numel, scale, want_sumsq, stream);
  };
  const auto add_bytes = [](int64_t sum, const Segment& segment) { return sum + segment.numel * size_of(segment.dtype); };
  for_each_block(segments, flat, std::accumulate(segments.begin(), segments.end(), int64_t{0}, add_bytes), counters, convert);
}

}  // namespace gpualloc
