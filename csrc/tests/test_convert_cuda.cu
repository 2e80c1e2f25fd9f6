// The CUDA kernels against the CPU converters, bit for bit: lists of tensors of all dtypes, sizes and alignments.
// Exit 77 without a GPU. An argument, such as 2200000000, adds one FP32 tensor of that many elements (64-bit offsets).
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "cpu/convert.h"
#include "kernels/convert.h"
#include "tests/device_buffer.h"
#include "tests/reference.h"

using namespace gpualloc;
using namespace gpualloc::test;

namespace {

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
    nonfinite += cpu.pack(hosts[k].data(), c.dtypes[k], expected_flat + segments[k].begin, wire, c.numels[k], scale, nullptr, false).nonfinite;
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
    const cpu::Tally one = cpu.unpack(expected_flat + segments[k].begin, wire, all.data() + starts[k], c.dtypes[k], c.numels[k], 3.0f, true, false);
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

// The wire scale, for a list that needs the given table: what pack writes and notes, what unpack gives back, and the update.
void test_wire_state(int count, Dtype wire, bool special) {
  std::mt19937_64 rng(static_cast<uint64_t>(count));
  std::vector<Segment> segments;
  int64_t total = 0;
  for (int k = 0; k < count; ++k) {
    const auto numel = static_cast<int64_t>(rng() % (k % 50 == 0 ? 30000 : 300));
    segments.push_back({nullptr, total, numel, Dtype::f32});
    total += numel;
  }
  const std::vector<char> source = random_elements(Dtype::f32, total, rng, special);
  const auto bytes = static_cast<size_t>(total) * 4;
  Buffer tensors(bytes), flat(bytes / 2), memory(sizeof(WireState)), nonfinite(8), counted(8);
  for (Segment& segment : segments) segment.data = static_cast<float*>(tensors.data) + segment.begin;
  tensors.upload(source.data(), bytes);
  const WireState before = first_state(64.0f, 64, true);  // a limit of 512, which some elements exceed
  memory.upload(&before, sizeof before);
  cuda_check(cudaMemset(counted.data, 0, 8), "zero");
  const auto seen = [&] {
    WireState state;
    std::memcpy(&state, memory.download().data(), sizeof state);
    return state;
  };

  std::vector<uint16_t> expected(static_cast<size_t>(total));
  const cpu::Tally tally = cpu::converters().pack(source.data(), Dtype::f32, expected.data(), wire, total, 0.5f, &before, false);
  cuda::Counters counters;
  counters.wire = static_cast<WireState*>(memory.data);
  counters.nonfinite = static_cast<int64_t*>(counted.data);
  cuda_check(cudaError_t(cuda::launch_pack(segments.data(), count, flat.data, wire, 0.5f, counters, nullptr)), "launch_pack");
  const std::vector<char> packed = flat.download();
  int64_t wrong = 0;
  for (int64_t i = 0; i < total; ++i) wrong += !same(load(packed.data(), wire, i), value_of(expected[static_cast<size_t>(i)], wire));
  check(wrong == 0, "wire scale, %d tensors, %s: pack %ld of %ld wrong", count, name_of(wire), long(wrong), long(total));
  check(*reinterpret_cast<const int64_t*>(counted.download().data()) == tally.nonfinite, "wire scale, %d tensors: non-finite count", count);
  const WireState noted = seen();
  check(noted.absmax == tally.absmax, "wire scale, %d tensors: largest %g, expected %g", count, double(noted.absmax), double(tally.absmax));
  check(noted.saturated == (tally.absmax * before.scale > before.limit ? 1 : 0), "wire scale, %d tensors: saturated %g at %g", count,
        double(noted.saturated), double(tally.absmax));
  check(noted.scale == before.scale && noted.inverse == before.inverse && noted.limit == before.limit, "wire scale: pack changed the state");

  counters.nonfinite = nullptr;
  cuda_check(cudaError_t(cuda::launch_unpack(segments.data(), count, flat.data, wire, 3.0f, counters, nullptr)), "launch_unpack");
  std::vector<float> back(static_cast<size_t>(total));
  cpu::converters().unpack(expected.data(), wire, back.data(), Dtype::f32, total, 3.0f * before.inverse, false, false);
  const std::vector<char> got = tensors.download();
  wrong = 0;
  for (int64_t i = 0; i < total; ++i) wrong += !same(load(got.data(), Dtype::f32, i), back[static_cast<size_t>(i)]);
  check(wrong == 0, "wire scale, %d tensors, %s: unpack %ld of %ld wrong", count, name_of(wire), long(wrong), long(total));

  nonfinite.upload(&tally.nonfinite, 8);
  const float* const agreed = &counters.wire->absmax;  // as an all-reduce of one rank leaves them
  cuda_check(cudaError_t(cuda::launch_update(counters.wire, agreed, static_cast<int64_t*>(nonfinite.data), nullptr)), "launch_update");
  const WireState updated = next_state(noted, noted.absmax, noted.saturated != 0, tally.nonfinite != 0), now = seen();
  check(std::memcmp(&now, &updated, sizeof now) == 0, "wire scale: updated to %g, expected %g", double(now.scale), double(updated.scale));
}

// next_state on the device, over the cases of the host's own tests.
void test_update() {
  Buffer memory(sizeof(WireState)), figures(8), nonfinite(8);
  for (const float scale : {kMinScale, 1.0f, 4096.0f, kMaxScale}) {
    for (const float absmax : {0.0f, 1e-45f, 1e-30f, 0.5f, 0.75f, 1e5f, 3e38f}) {
      for (const int flags : {0, 1, 2, 3, 4, 5, 6, 7}) {
        const WireState before = first_state(scale, 3, (flags & 1) != 0);
        const float agreed[2] = {absmax, (flags & 2) != 0 ? 1.0f : 0.0f};
        const int64_t count = (flags & 4) != 0 ? 12 : 0;
        memory.upload(&before, sizeof before);
        figures.upload(agreed, sizeof agreed);
        nonfinite.upload(&count, sizeof count);
        const int error = cuda::launch_update(static_cast<WireState*>(memory.data), static_cast<float*>(figures.data),
                                              static_cast<int64_t*>(nonfinite.data), nullptr);
        cuda_check(cudaError_t(error), "launch_update");
        const WireState expected = next_state(before, absmax, agreed[1] != 0, count != 0);
        check(std::memcmp(memory.download().data(), &expected, sizeof expected) == 0, "update of scale %g, largest %g, flags %d", double(scale),
              double(absmax), flags);
      }
    }
  }
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
    cpu::converters().pack(hosts[p].data(), Dtype::f32, expected.data(), Dtype::f16, kProbe, 0.5f, nullptr, false);
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
  for (const Dtype wire : {Dtype::f16, Dtype::bf16}) {
    for (const bool special : {false, true}) {
      for (const int count : {1, 5, 321, 3000}) test_wire_state(count, wire, special);
    }
  }
  test_update();
  if (argc > 1) test_large(std::stoll(argv[1]));
  return finish();
}
