// The CUDA kernels against the CPU converters, bit for bit: lists of tensors of all dtypes, sizes and alignments.
// Exit 77 without a GPU. An argument, such as 2200000000, adds one FP32 tensor of that many elements (64-bit offsets).
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "cpu/convert.h"
#include "kernels/convert.h"
#include "tests/reference.h"

using namespace gpualloc;
using namespace gpualloc::test;

namespace {

void cuda_check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Device memory of `bytes`, poisoned.
struct Buffer {
  explicit Buffer(size_t bytes) : bytes(bytes) {
    cuda_check(cudaMalloc(&data, bytes), "cudaMalloc");
    cuda_check(cudaMemset(data, 0x5a, bytes), "cudaMemset");
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void upload(const void* from, size_t count) { cuda_check(cudaMemcpy(data, from, count, cudaMemcpyHostToDevice), "upload"); }
  std::vector<char> download() const {
    std::vector<char> host(bytes);
    cuda_check(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost), "download");
    return host;
  }
  void* data = nullptr;
  size_t bytes;
};

struct Case {
  std::vector<int64_t> numels;
  std::vector<Dtype> dtypes;
  int64_t skew;  // elements before every tensor, and before the flat buffer
  bool special;
};

struct Results {
  Buffer nonfinite{8}, sumsq{8}, workspace;
  explicit Results(int64_t chunks) : workspace(static_cast<size_t>(cuda::workspace_bytes(chunks))) {
    cuda_check(cudaMemset(nonfinite.data, 0, 8), "zero");
    cuda_check(cudaMemset(sumsq.data, 0, 8), "zero");
    cuda_check(cudaMemset(workspace.data, 0, 8), "zero");  // the rest stays poisoned
  }
  int64_t nonfinite_count() const { return *reinterpret_cast<const int64_t*>(nonfinite.download().data()); }
  double sum_of_squares() const { return *reinterpret_cast<const double*>(sumsq.download().data()); }
};

void test_list(const Case& c, Dtype wire, float scale) {
  std::mt19937_64 rng(c.numels.size() * 7 + static_cast<uint64_t>(c.skew));
  const size_t count = c.numels.size();
  std::vector<std::vector<char>> hosts;
  std::vector<Segment> segments;
  std::vector<int64_t> starts;  // bytes into one allocation: tens of thousands of small ones would be slow
  int64_t total = 0, bytes = 0;
  for (size_t k = 0; k < count; ++k) {
    const int64_t size = size_of(c.dtypes[k]);
    hosts.push_back(random_elements(c.dtypes[k], c.numels[k], rng, c.special));
    starts.push_back(bytes + c.skew * size);
    bytes = (bytes + (c.numels[k] + c.skew) * size + 31) / 16 * 16;
    segments.push_back({nullptr, total, c.numels[k], c.dtypes[k]});
    total += c.numels[k];
  }
  Buffer tensors(static_cast<size_t>(bytes) + 16), flat(static_cast<size_t>(total + c.skew) * 2 + 16);
  std::vector<char> all = tensors.download();
  for (size_t k = 0; k < count; ++k) {
    segments[k].data = static_cast<char*>(tensors.data) + starts[k];
    std::memcpy(all.data() + starts[k], hosts[k].data(), static_cast<size_t>(c.numels[k] * size_of(c.dtypes[k])));
  }
  tensors.upload(all.data(), all.size());
  auto* const flat_data = static_cast<uint16_t*>(flat.data) + c.skew;

  // pack: the same bits as the CPU's, the same count, nothing written outside
  std::vector<char> expected = flat.download();
  auto* const expected_flat = reinterpret_cast<uint16_t*>(expected.data()) + c.skew;
  int64_t nonfinite = 0;
  const cpu::Converters& cpu = cpu::converters();
  for (size_t k = 0; k < count; ++k) {
    nonfinite += cpu.pack(hosts[k].data(), c.dtypes[k], expected_flat + segments[k].begin, wire, c.numels[k], scale).nonfinite;
  }
  Results packed(0);
  cuda::Counters counters{static_cast<int64_t*>(packed.nonfinite.data), nullptr, nullptr};
  int error = cuda::launch_pack(segments.data(), int(count), flat_data, wire, scale, counters, nullptr);
  cuda_check(cudaError_t(error), "launch_pack");
  const std::vector<char> got = flat.download();
  int64_t wrong = 0;
  for (size_t i = 0; i < got.size() / 2; ++i) {
    const uint16_t a = reinterpret_cast<const uint16_t*>(got.data())[i], b = reinterpret_cast<const uint16_t*>(expected.data())[i];
    wrong += a != b && !(std::isnan(value_of(a, wire)) && std::isnan(value_of(b, wire)));
  }
  check(wrong == 0, "pack %zu tensors, %ld elements + %ld, %s: %ld wrong", count, long(total), long(c.skew), name_of(wire), long(wrong));
  check(packed.nonfinite_count() == nonfinite, "pack %zu tensors: counted %ld non-finite of %ld", count, long(packed.nonfinite_count()),
        long(nonfinite));

  // unpack, with all counters, twice: the same values as the CPU's and the same sum bit for bit in both runs
  cpu::Tally tally;
  for (size_t k = 0; k < count; ++k) {
    const cpu::Tally one = cpu.unpack(expected_flat + segments[k].begin, wire, all.data() + starts[k], c.dtypes[k], c.numels[k], 3.0f, true);
    tally.nonfinite += one.nonfinite;
    tally.sumsq += one.sumsq;
  }
  flat.upload(expected.data(), expected.size());
  double first_sum = 0;
  for (int run = 0; run < 2; ++run) {
    Results unpacked(cuda::chunks_for(segments.data(), int(count)));
    counters = {static_cast<int64_t*>(unpacked.nonfinite.data), static_cast<double*>(unpacked.sumsq.data), unpacked.workspace.data};
    error = cuda::launch_unpack(segments.data(), int(count), flat_data, wire, 3.0f, counters, nullptr);
    cuda_check(cudaError_t(error), "launch_unpack");
    const std::vector<char> back = tensors.download();
    wrong = 0;
    for (size_t k = 0; k < count; ++k) {
      for (int64_t i = 0; i < c.numels[k]; ++i) {
        wrong += !same(load(back.data() + starts[k], c.dtypes[k], i), load(all.data() + starts[k], c.dtypes[k], i));
      }
    }
    check(wrong == 0, "unpack %zu tensors, %ld elements + %ld, %s: %ld wrong", count, long(total), long(c.skew), name_of(wire), long(wrong));
    check(unpacked.nonfinite_count() == tally.nonfinite, "unpack %zu tensors: counted %ld non-finite of %ld", count,
          long(unpacked.nonfinite_count()), long(tally.nonfinite));
    const double sum = unpacked.sum_of_squares();
    // Both sum FP32 squares in groups before FP64: at most 2048 roundings of 2**-24 on either side.
    if (std::isfinite(tally.sumsq)) {
      check(std::fabs(sum - tally.sumsq) <= 2 * 2048 * 0x1p-24 * tally.sumsq, "unpack %zu tensors: sum of squares %g, expected %g", count,
            sum, tally.sumsq);
    }
    if (run == 0) first_sum = sum;
    check(same(sum, first_sum), "unpack %zu tensors: sum of squares changed between runs, %.17g and %.17g", count, first_sum, sum);
  }
}

// The wire scale: pack multiplies with it, unpack with its inverse and keeps the largest magnitude, the update is the CPU's.
void test_wire_state(bool special, bool overflowed) {
  std::mt19937_64 rng(9);
  constexpr int64_t kNumel = 30011;
  const std::vector<char> source = random_elements(Dtype::f32, kNumel, rng, special);
  Buffer tensor(kNumel * 4), flat(kNumel * 2), state(sizeof(WireState)), nonfinite(8);
  const WireState before{0.125f, 8.0f, 1e-30f, 0};
  const int64_t count = overflowed;
  tensor.upload(source.data(), kNumel * 4);
  state.upload(&before, sizeof before);
  nonfinite.upload(&count, sizeof count);
  const Segment segment{tensor.data, 0, kNumel, Dtype::f32};
  cuda::Counters counters;
  counters.wire = static_cast<WireState*>(state.data);
  cuda_check(cudaError_t(cuda::launch_pack(&segment, 1, flat.data, Dtype::f16, 0.5f, counters, nullptr)), "launch_pack");
  cuda_check(cudaError_t(cuda::launch_unpack(&segment, 1, flat.data, Dtype::f16, 1.0f, counters, nullptr)), "launch_unpack");

  std::vector<uint16_t> wire(kNumel);
  std::vector<float> back(kNumel);
  cpu::converters().pack(source.data(), Dtype::f32, wire.data(), Dtype::f16, kNumel, 0.5f * before.scale);
  const cpu::Tally tally = cpu::converters().unpack(wire.data(), Dtype::f16, back.data(), Dtype::f32, kNumel, before.inverse, true);
  const std::vector<char> got = tensor.download();
  int64_t wrong = 0;
  for (int64_t i = 0; i < kNumel; ++i) wrong += !same(load(got.data(), Dtype::f32, i), back[static_cast<size_t>(i)]);
  check(wrong == 0, "wire scale: %ld of %ld wrong", long(wrong), long(kNumel));
  WireState seen;
  std::memcpy(&seen, state.download().data(), sizeof seen);
  check(same(seen.absmax, tally.absmax), "wire scale: largest %g, expected %g", double(seen.absmax), double(tally.absmax));

  cuda_check(cudaError_t(cuda::launch_update(counters.wire, static_cast<int64_t*>(nonfinite.data), nullptr)), "launch_update");
  const WireState expected = next_state(seen, overflowed);
  std::memcpy(&seen, state.download().data(), sizeof seen);
  check(std::memcmp(&seen, &expected, sizeof seen) == 0, "wire scale: updated to %g, expected %g", double(seen.scale), double(expected.scale));
}

// More than 2**31 elements: a few probes at both ends and around 2**31, against the same tensor packed on the CPU there.
void test_large(int64_t numel) {
  Buffer tensor(static_cast<size_t>(numel) * 4), flat(static_cast<size_t>(numel) * 2);
  std::mt19937_64 rng(5);
  constexpr int64_t kProbe = 4099;
  const int64_t probes[] = {0, (int64_t{1} << 31) - kProbe / 2, numel - kProbe};
  std::vector<std::vector<char>> hosts;
  for (const int64_t begin : probes) {
    hosts.push_back(random_elements(Dtype::f32, kProbe, rng, true));
    cuda_check(cudaMemcpy(static_cast<float*>(tensor.data) + begin, hosts.back().data(), kProbe * 4, cudaMemcpyHostToDevice), "upload");
  }
  const Segment segment{tensor.data, 0, numel, Dtype::f32};
  const int error = cuda::launch_pack(&segment, 1, flat.data, Dtype::f16, 0.5f, {}, nullptr);
  cuda_check(cudaError_t(error), "launch_pack");
  for (size_t p = 0; p < hosts.size(); ++p) {
    std::vector<uint16_t> expected(kProbe), got(kProbe);
    cpu::converters().pack(hosts[p].data(), Dtype::f32, expected.data(), Dtype::f16, kProbe, 0.5f);
    cuda_check(cudaMemcpy(got.data(), static_cast<uint16_t*>(flat.data) + probes[p], kProbe * 2, cudaMemcpyDeviceToHost), "download");
    int64_t wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      wrong += got[i] != expected[i] && !(std::isnan(value_of(got[i], Dtype::f16)) && std::isnan(value_of(expected[i], Dtype::f16)));
    }
    check(wrong == 0, "pack of %ld elements, at %ld: %ld of %ld wrong", long(numel), long(probes[p]), long(wrong), long(kProbe));
  }
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f64};
  for (const Dtype wire : {Dtype::f16, Dtype::bf16}) {
    for (const bool special : {false, true}) {
      for (const int64_t skew : {0, 1, 3}) {
        for (const Dtype dtype : kDtypes) {
          for (const int64_t numel : {0, 1, 7, 8, 255, 2047, 2048, 2049, 100003}) test_list({{numel}, {dtype}, skew, special}, wire, 0.25f);
        }
        // Mixed lists that need the medium table, the large one, and several launches.
        for (const int count : {5, 321, 3000}) {
          Case mixed{{}, {}, skew, special};
          std::mt19937 rng(static_cast<unsigned>(count));
          for (int k = 0; k < count; ++k) {
            mixed.numels.push_back(k % 17 == 0 ? 0 : static_cast<int64_t>(rng() % (k % 50 == 1 ? 40000 : 300)));
            mixed.dtypes.push_back(kDtypes[rng() % 4]);
          }
          test_list(mixed, wire, 1.0f / 3);
        }
      }
    }
  }
  for (const Dtype wire : {Dtype::f16, Dtype::bf16}) test_list({{3000007}, {Dtype::f32}, 0, false}, wire, 0.25f);  // many blocks sum
  for (const bool special : {false, true}) {
    test_wire_state(special, false);
    test_wire_state(special, true);
  }
  if (argc > 1) test_large(std::stoll(argv[1]));
  return finish();
}
