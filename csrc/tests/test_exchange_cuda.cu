// The CUDA exchange against the CPU loops, bit for bit but for the payload of a NaN: sizes, alignments, poisoned outputs.
// Exit 77 without a GPU. An argument, such as 2200000000, adds a bucket of that many elements (64-bit offsets).
#include <cuda_runtime.h>

#include <string>

#include "cpu/exchange.h"
#include "kernels/exchange.h"
#include "tests/device_buffer.h"
#include "tests/exchange_cases.h"
#include "tests/reference.h"

using namespace gpualloc;
using namespace gpualloc::test;

namespace {

constexpr size_t kGuard = 64;  // bytes after what may be written
constexpr char kPoison = 0x5a;  // Buffer's
const cpu::Exchangers& kCpu = cpu::exchangers();

// `numel` elements on the host and the same on the device, both `skew` elements after an aligned address and followed by poison.
template <typename T>
struct Mirror {
  Mirror(int64_t numel, int64_t skew = 0)
      : numel(numel), skew(skew), host(static_cast<size_t>(numel + skew) * sizeof(T) + kGuard, kPoison), device(host.size()) {}
  Mirror(const std::vector<T>& values, int64_t skew = 0) : Mirror(static_cast<int64_t>(values.size()), skew) {
    std::memcpy(on_host(), values.data(), values.size() * sizeof(T));
    device.upload(host.data(), host.size());
  }
  T* on_host() { return reinterpret_cast<T*>(host.data()) + skew; }
  T* on_device() { return static_cast<T*>(device.data) + skew; }

  // Elements that differ, and poison that was written over.
  long different() const {
    const std::vector<char> got = device.download();
    long wrong = 0;
    for (int64_t i = 0; i < numel; ++i) {
      const size_t at = static_cast<size_t>(skew + i) * sizeof(T);
      const bool equal = std::memcmp(got.data() + at, host.data() + at, sizeof(T)) == 0;
      wrong += !equal && !(is_nan(got.data() + at) && is_nan(host.data() + at));
    }
    const size_t begin = static_cast<size_t>(skew) * sizeof(T), end = begin + static_cast<size_t>(numel) * sizeof(T);
    for (size_t i = 0; i < got.size(); ++i) wrong += (i < begin || i >= end) && got[i] != kPoison;
    return wrong;
  }

  int64_t numel, skew;
  std::vector<char> host;
  Buffer device;
  Dtype half = Dtype::f16;  // what 16 bits are

 private:
  bool is_nan(const char* at) const {
    if constexpr (sizeof(T) == 1) return false;
    return std::isnan(load(at, sizeof(T) == 4 ? Dtype::f32 : half, 0));
  }
};

void launched(int error, const char* what) { cuda_check(static_cast<cudaError_t>(error), what); }

void test_quantize(int64_t numel, int64_t world_size, int64_t skew, bool feedback, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 10 + world_size));
  Mirror<float> source(random_floats(numel, rng, special), skew), residual(random_floats(numel, rng, special), skew);
  Mirror<uint8_t> wire(world_size * int8_shard_bytes(shard_numel(numel, world_size)));
  quantize_bucket(kCpu, source.on_host(), numel, world_size, 1.0f / 3, feedback ? residual.on_host() : nullptr, wire.on_host());
  launched(cuda::launch_quantize(source.on_device(), numel, 1.0f / 3, feedback ? residual.on_device() : nullptr, wire.on_device(), world_size,
                                 nullptr),
           "launch_quantize");
  check(wire.different() == 0 && residual.different() == 0,
        "quantize %ld elements + %ld, %ld ranks, feedback %d: %ld bytes, %ld residuals wrong", long(numel), long(skew), long(world_size), feedback, wire.different(), residual.different());
}

void test_reduce(int64_t per_shard, int64_t world_size, int64_t skew, bool feedback, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(per_shard + world_size));
  Mirror<uint8_t> shards(random_wire(per_shard, world_size, rng, special)), out(int8_shard_bytes(per_shard));
  Mirror<float> error(random_floats(per_shard, rng, special), skew);
  reduce_shards(kCpu, shards.on_host(), per_shard, world_size, out.on_host(), feedback ? error.on_host() : nullptr);
  launched(cuda::launch_reduce_int8(shards.on_device(), per_shard, world_size, out.on_device(), feedback ? error.on_device() : nullptr,
                                    nullptr),
           "launch_reduce_int8");
  check(out.different() == 0 && error.different() == 0, "reduce_int8 %ld elements, %ld ranks, feedback %d: %ld bytes, %ld errors wrong",
        long(per_shard), long(world_size), feedback, out.different(), error.different());
}

void test_dequantize(int64_t numel, int64_t world_size, int64_t skew, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 10 + world_size));
  Mirror<uint8_t> wire(random_wire(shard_numel(numel, world_size), world_size, rng, special));
  Mirror<float> target(numel, skew);
  const cpu::Tally tally = dequantize_bucket(kCpu, wire.on_host(), numel, world_size, target.on_host());
  Mirror<int64_t> nonfinite(std::vector<int64_t>{5});
  Buffer workspace(static_cast<size_t>(cuda::workspace_bytes(cuda::dequantize_chunks(numel, world_size))));
  cuda_check(cudaMemset(workspace.data, 0, 8), "zero");  // the rest stays poisoned
  double sums[2];
  for (double& sum : sums) {
    Mirror<double> sumsq(std::vector<double>{0.0});
    const cuda::Counters counters{nonfinite.on_device(), sumsq.on_device(), workspace.data};
    launched(cuda::launch_dequantize(wire.on_device(), target.on_device(), numel, world_size, counters, nullptr), "launch_dequantize");
    std::memcpy(&sum, sumsq.device.download().data(), sizeof sum);
    *nonfinite.on_host() += tally.nonfinite;
  }
  check(target.different() == 0, "dequantize %ld elements + %ld, %ld ranks: %ld wrong", long(numel), long(skew), long(world_size),
        target.different());
  check(nonfinite.different() == 0, "dequantize %ld elements: counted not %ld non-finite", long(numel), long(tally.nonfinite));
  check(std::memcmp(&sums[0], &sums[1], sizeof(double)) == 0, "dequantize %ld elements: sum of squares changed between runs, %.17g and %.17g",
        long(numel), sums[0], sums[1]);
  // Both sum FP32 squares, at most 256 together before FP64, which lose what is below 2**-149.
  if (std::isfinite(tally.sumsq)) {
    check(std::fabs(sums[0] - tally.sumsq) <= 2 * 256 * 0x1p-24 * tally.sumsq + static_cast<double>(numel) * 0x1p-149,
          "dequantize %ld elements: sum of squares %g, expected %g", long(numel), sums[0], tally.sumsq);
  }
  launched(cuda::launch_dequantize(wire.on_device(), target.on_device(), numel, world_size, {}, nullptr), "launch_dequantize");
  check(target.different() == 0, "dequantize %ld elements uncounted: %ld wrong", long(numel), target.different());
}

std::vector<uint16_t> random_halves(Dtype dtype, int64_t numel, std::mt19937_64& rng, bool special) {
  const std::vector<char> bytes = random_elements(dtype, numel, rng, special);
  std::vector<uint16_t> halves(static_cast<size_t>(numel));
  std::memcpy(halves.data(), bytes.data(), halves.size() * 2);
  return halves;
}

void test_sum(Dtype dtype, int64_t numel, int64_t world_size, int64_t skew, bool feedback, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 10 + world_size));
  Mirror<uint16_t> shards(random_halves(dtype, world_size * numel, rng, special), skew), out(numel, skew);
  Mirror<float> error(random_floats(numel, rng, special), skew);
  out.half = dtype;
  kCpu.sum_shards(shards.on_host(), numel, world_size, out.on_host(), dtype, numel, feedback ? error.on_host() : nullptr);
  launched(cuda::launch_sum_shards(shards.on_device(), world_size, out.on_device(), dtype, numel, feedback ? error.on_device() : nullptr,
                                   nullptr),
           "launch_sum_shards");
  check(out.different() == 0 && error.different() == 0,
        "sum_shards %s, %ld elements + %ld, %ld ranks, feedback %d: %ld sums, %ld errors wrong", name_of(dtype), long(numel), long(skew), long(world_size), feedback, out.different(), error.different());
}

void test_feedback(Dtype wire_dtype, int64_t numel, int64_t skew, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(numel * 10 + skew));
  Mirror<float> source(random_floats(numel, rng, special), skew), residual(random_floats(numel, rng, special), skew);
  Mirror<uint16_t> wire(numel, skew);
  wire.half = wire_dtype;
  kCpu.pack_with_feedback(source.on_host(), 1.0f / 3, residual.on_host(), wire.on_host(), wire_dtype, numel);
  launched(cuda::launch_pack_with_feedback(source.on_device(), 1.0f / 3, residual.on_device(), wire.on_device(), wire_dtype, numel, nullptr),
           "launch_pack_with_feedback");
  check(wire.different() == 0 && residual.different() == 0, "pack_with_feedback %s, %ld elements + %ld: %ld halves, %ld residuals wrong",
        name_of(wire_dtype), long(numel), long(skew), wire.different(), residual.different());
}

// More than 2**31 elements of zeros with blocks of others at both ends and around 2**31: through quantize, dequantize and
// pack_with_feedback, against the same blocks on the CPU.
void test_large(int64_t numel) {
  constexpr int64_t kProbe = 4 * kInt8Block;
  const int64_t probes[] = {0, int64_t{1} << 31, (numel - kProbe) / kInt8Block * kInt8Block};
  const int64_t per_shard = shard_numel(numel, 1);
  Buffer source(static_cast<size_t>(numel) * 4), wire(static_cast<size_t>(int8_shard_bytes(per_shard))), halves(static_cast<size_t>(numel) * 2);
  cuda_check(cudaMemset(source.data, 0, source.bytes), "zero");
  auto* const floats = static_cast<float*>(source.data);
  std::mt19937_64 rng(5);
  std::vector<std::vector<float>> gradients, expected;
  for (const int64_t begin : probes) {
    gradients.push_back(random_floats(kProbe, rng, true));
    cuda_check(cudaMemcpy(floats + begin, gradients.back().data(), kProbe * 4, cudaMemcpyHostToDevice), "upload");
    std::vector<uint8_t> quantized(static_cast<size_t>(int8_shard_bytes(kProbe)));
    expected.emplace_back(kProbe);
    quantize_bucket(kCpu, gradients.back().data(), kProbe, 1, 0.5f, nullptr, quantized.data());
    dequantize_bucket(kCpu, quantized.data(), kProbe, 1, expected.back().data());
  }
  launched(cuda::launch_quantize(floats, numel, 0.5f, nullptr, static_cast<uint8_t*>(wire.data), 1, nullptr), "launch_quantize");
  launched(cuda::launch_dequantize(static_cast<uint8_t*>(wire.data), floats, numel, 1, {}, nullptr), "launch_dequantize");
  Buffer residual(static_cast<size_t>(numel) * 4);
  cuda_check(cudaMemset(residual.data, 0, residual.bytes), "zero");
  launched(cuda::launch_pack_with_feedback(floats, 1.0f, static_cast<float*>(residual.data), halves.data, Dtype::bf16, numel, nullptr),
           "launch_pack_with_feedback");
  for (size_t p = 0; p < gradients.size(); ++p) {
    std::vector<float> got(kProbe), kept(kProbe), kept_expected(kProbe, 0.0f);
    std::vector<uint16_t> packed(kProbe), packed_expected(kProbe);
    cuda_check(cudaMemcpy(got.data(), floats + probes[p], kProbe * 4, cudaMemcpyDeviceToHost), "download");
    cuda_check(cudaMemcpy(kept.data(), static_cast<float*>(residual.data) + probes[p], kProbe * 4, cudaMemcpyDeviceToHost), "download");
    cuda_check(cudaMemcpy(packed.data(), static_cast<uint16_t*>(halves.data) + probes[p], kProbe * 2, cudaMemcpyDeviceToHost), "download");
    kCpu.pack_with_feedback(expected[p].data(), 1.0f, kept_expected.data(), packed_expected.data(), Dtype::bf16, kProbe);
    long wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      wrong += !same(got[i], expected[p][i]) || !same(kept[i], kept_expected[i]);
      wrong += !same(value_of(packed[i], Dtype::bf16), value_of(packed_expected[i], Dtype::bf16));
    }
    check(wrong == 0, "exchange of %ld elements, at %ld: %ld of %ld wrong", long(numel), long(probes[p]), wrong, long(kProbe));
  }
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  for (const bool special : {false, true}) {
    for (const int64_t numel : {0, 1, 7, 255, 256, 257, 1023, 1024, 1025, 2049, 100003}) {
      for (const int64_t skew : {0, 1, 3}) {
        for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) test_feedback(dtype, numel, skew, special);
        for (const int64_t world_size : {1, 2, 5, 8}) {
          test_dequantize(numel, world_size, skew, special);
          for (const bool feedback : {false, true}) {
            test_quantize(numel, world_size, skew, feedback, special);
            for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) test_sum(dtype, numel, world_size, skew, feedback, special);
          }
        }
      }
    }
    for (const int64_t per_shard : {1024, 2048, 3072, 102400}) {
      for (const int64_t world_size : {1, 2, 5, 8, 9}) {
        for (const bool feedback : {false, true}) test_reduce(per_shard, world_size, feedback ? world_size % 2 : 0, feedback, special);
      }
    }
  }
  test_dequantize(3000007, 2, 0, false);  // many blocks sum
  if (argc > 1) test_large(std::stoll(argv[1]));
  return finish();
}
