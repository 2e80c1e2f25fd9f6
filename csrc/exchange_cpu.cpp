// The gradient exchange on the CPU: shards cut into pieces, the pieces shared out over torch's threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "cpu/exchange.h"
#include "exchange.h"

namespace gpualloc {
namespace {

// Elements; fixed, so that the sum of squares does not depend on the number of threads.
constexpr int64_t kPiece = 16 * kShardAlign;
constexpr int64_t kPiecesPerThread = 2;  // fewer are not worth waking a thread

int64_t pieces_in(int64_t numel) { return (numel + kPiece - 1) / kPiece; }

// Calls work(shard, begin, count, piece) for every piece [begin, begin + count) of every shard, in parallel.
template <typename Work>
void for_each_piece(int64_t num_shards, int64_t shard_numel, const Work& work) {
  const int64_t per_shard = pieces_in(shard_numel);
  at::parallel_for(0, num_shards * per_shard, kPiecesPerThread, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece % per_shard * kPiece;
      work(piece / per_shard, begin, std::min(kPiece, shard_numel - begin), piece);
    }
  });
}

// Where the values and scales of element `begin` of an INT8 shard lie.
int8_t* values_at(uint8_t* shard, int64_t begin) { return reinterpret_cast<int8_t*>(shard) + begin; }
float* scales_at(uint8_t* shard, int64_t shard_numel, int64_t begin) {
  return reinterpret_cast<float*>(shard + shard_numel) + begin / kInt8Block;
}

float* at_or_null(float* data, int64_t begin) { return data == nullptr ? nullptr : data + begin; }

}  // namespace

void sum_shards_cpu(const at::Tensor& shards, const at::Tensor& out, Dtype dtype, float* error) {
  const int64_t numel = out.numel(), world_size = shards.numel() / numel;
  const auto* const from = static_cast<const uint16_t*>(shards.data_ptr());
  auto* const to = static_cast<uint16_t*>(out.data_ptr());
  for_each_piece(1, numel, [&](int64_t, int64_t begin, int64_t count, int64_t) {
    cpu::exchangers().sum_shards(from + begin, numel, world_size, to + begin, dtype, count, at_or_null(error, begin));
  });
}

void quantize_cpu(const at::Tensor& source, const at::Tensor& wire, int64_t world_size, float scale, float* residual) {
  const int64_t numel = source.numel(), per_shard = shard_numel(numel, world_size);
  const float* const from = source.data_ptr<float>();
  uint8_t* const to = wire.data_ptr<uint8_t>();
  for_each_piece(world_size, per_shard, [&](int64_t shard, int64_t begin, int64_t count, int64_t) {
    const int64_t first = std::min(numel, shard * per_shard + begin);
    uint8_t* const shard_data = to + shard * int8_shard_bytes(per_shard);
    cpu::exchangers().quantize(from + first, std::min(count, numel - first), scale, at_or_null(residual, first), values_at(shard_data, begin),
                               scales_at(shard_data, per_shard, begin), count);
  });
}

void reduce_int8_cpu(const at::Tensor& shards, const at::Tensor& out, int64_t shard_numel, int64_t world_size, float* error) {
  uint8_t* const from = shards.data_ptr<uint8_t>();
  uint8_t* const to = out.data_ptr<uint8_t>();
  for_each_piece(1, shard_numel, [&](int64_t, int64_t begin, int64_t count, int64_t) {
    cpu::exchangers().reduce_int8(values_at(from, begin), scales_at(from, shard_numel, begin), out.numel(), world_size, values_at(to, begin),
                                  scales_at(to, shard_numel, begin), count, at_or_null(error, begin));
  });
}

void dequantize_cpu(const at::Tensor& wire, const at::Tensor& target, int64_t world_size, const Counters& counters) {
  const int64_t numel = target.numel(), per_shard = shard_numel(numel, world_size);
  const int64_t num_pieces = world_size * pieces_in(per_shard);
  thread_local std::vector<double> piece_sumsq;  // kept, so that no call allocates
  piece_sumsq.resize(num_pieces);
  double* const sums = piece_sumsq.data();  // the calling thread's, also inside the workers
  std::atomic<int64_t> nonfinite{0};
  uint8_t* const from = wire.data_ptr<uint8_t>();
  float* const to = target.data_ptr<float>();
  for_each_piece(world_size, per_shard, [&](int64_t shard, int64_t begin, int64_t count, int64_t piece) {
    const int64_t first = std::min(numel, shard * per_shard + begin);
    uint8_t* const shard_data = from + shard * int8_shard_bytes(per_shard);
    const cpu::Tally tally = cpu::exchangers().dequantize(values_at(shard_data, begin), scales_at(shard_data, per_shard, begin), to + first,
                                                          std::min(count, numel - first), counters.sumsq.has_value());
    sums[piece] = tally.sumsq;
    if (tally.nonfinite != 0) nonfinite += tally.nonfinite;
  });
  // Hooks of several buckets may add to one counter from different threads.
  if (counters.nonfinite.has_value() && nonfinite != 0) {
    __atomic_fetch_add(counters.nonfinite->data_ptr<int64_t>(), nonfinite.load(), __ATOMIC_RELAXED);
  }
  if (counters.sumsq.has_value()) *counters.sumsq->data_ptr<double>() += std::accumulate(sums, sums + num_pieces, 0.0);
}

void pack_with_feedback_cpu(const at::Tensor& source, const at::Tensor& wire, Dtype wire_dtype, float scale, float* residual) {
  const float* const from = source.data_ptr<float>();
  auto* const to = static_cast<uint16_t*>(wire.data_ptr());
  for_each_piece(1, source.numel(), [&](int64_t, int64_t begin, int64_t count, int64_t) {
    cpu::exchangers().pack_with_feedback(from + begin, scale, residual + begin, to + begin, wire_dtype, count);
  });
}

}  // namespace gpualloc
