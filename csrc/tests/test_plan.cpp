// The planner against brute force over all plans, and the link's fit against links that are known.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "ddp/plan.h"

using namespace gpualloc;

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

Buckets some_buckets(std::mt19937& random, int count) {
  Buckets buckets;
  for (int i = 0; i < count; ++i) {
    buckets.push_back({static_cast<int64_t>(1) << std::uniform_int_distribution<int>(8, 22)(random), random() % 8 != 0, 0});
  }
  return buckets;
}

Figures some_figures(std::mt19937& random, const Buckets& buckets) {
  Figures figures;
  double ready = 0;
  for (size_t i = 0; i < buckets.size(); ++i) {
    figures.ready_s.push_back(ready);
    ready += std::uniform_real_distribution<double>(0, 2e-3)(random);
  }
  for (LinkModel& link : figures.links) {
    link = {std::uniform_real_distribution<double>(0, 5e-4)(random), std::uniform_real_distribution<double>(1e9, 2e10)(random)};
  }
  return figures;
}

bool is_cover(const Plan& plan, const Buckets& buckets) {
  int next = 0;
  for (const Transfer& transfer : plan) {
    if (transfer.first != next || transfer.last < transfer.first) return false;
    for (int i = transfer.first; i <= transfer.last; ++i) {
      if (!buckets[static_cast<size_t>(i)].narrowable && (transfer.first != transfer.last || transfer.wire != Wire::fp32)) return false;
    }
    next = transfer.last + 1;
  }
  return next == static_cast<int>(buckets.size());
}

// The earliest end of all plans that `wires` allow, by trying them all.
double brute_force(const Buckets& buckets, const Figures& figures, const std::vector<Wire>& wires, Plan& prefix) {
  const int begin = prefix.empty() ? 0 : prefix.back().last + 1, count = static_cast<int>(buckets.size());
  if (begin == count) return finish_s(prefix, buckets, figures);
  double best = HUGE_VAL;
  for (int last = begin; last < count; ++last) {
    for (const Wire wire : wires) {
      prefix.push_back({begin, last, buckets[static_cast<size_t>(begin)].narrowable ? wire : Wire::fp32});
      const bool merges_int8 = wire == Wire::int8 && last > begin;
      if (is_cover(prefix, Buckets(buckets.begin(), buckets.begin() + last + 1)) && !merges_int8) {
        best = std::min(best, brute_force(buckets, figures, wires, prefix));
      }
      prefix.pop_back();
    }
  }
  return best;
}

void small_neighbours_are_joined() {
  const Buckets buckets{{100, true, 0}, {100, true, 0}, {300, true, 0}, {100, true, 0}, {9, false, 0}, {9, true, 0}, {9, true, 1}};
  const Plan joined = joined_plan(buckets, Wire::fp16, 800);
  check(joined == Plan{{0, 1, Wire::fp16}, {2, 3, Wire::fp16}, {4, 4, Wire::fp32}, {5, 5, Wire::fp16}, {6, 6, Wire::fp16}},
        "up to 800 bytes travel together, on one device, in the type that is narrowed");
  check(joined_plan(buckets, Wire::int8, 800) == plain_plan(buckets, Wire::int8), "int8 buckets travel alone");
  check(joined_plan(buckets, Wire::fp16, 0) == plain_plan(buckets, Wire::fp16), "at most 0 bytes: nothing is joined");
}

void best_plan_is_the_best() {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const Buckets buckets = some_buckets(random, 1 + static_cast<int>(random() % 6));
    const Figures figures = some_figures(random, buckets);
    for (const std::vector<Wire>& wires : {std::vector<Wire>{Wire::fp16}, {Wire::fp32, Wire::fp16}, {Wire::fp32, Wire::fp16, Wire::int8}}) {
      const Plan plan = best_plan(buckets, figures, wires, 0);
      Plan prefix;
      const double least = brute_force(buckets, figures, wires, prefix);
      check(is_cover(plan, buckets), "best_plan covers every bucket once");
      check(std::abs(finish_s(plan, buckets, figures) - least) <= 1e-9 * least, "best_plan ends when the best of all plans ends");
      const Plan tolerant = best_plan(buckets, figures, wires, 0.05);
      check(finish_s(tolerant, buckets, figures) <= least * 1.05 * (1 + 1e-9), "best_plan keeps to its tolerance");
    }
  }
}

void hidden_transfers_stay_wide() {
  const Buckets buckets{{1 << 20, true, 0}, {1 << 20, true, 0}};
  Figures figures;
  figures.ready_s = {0, 0.1};  // the first is hidden however wide
  for (LinkModel& link : figures.links) link = {1e-5, 1e9};
  const Plan plan = best_plan(buckets, figures, {Wire::fp32, Wire::fp16}, 0.0);
  check(plan.size() == 2 && plan[0].wire == Wire::fp32 && plan[1].wire == Wire::fp16, "FP32 where hidden, FP16 where exposed");
}

void latency_merges() {
  Buckets buckets(100, {1000, true, 0});
  Figures figures;
  figures.ready_s.assign(100, 0);
  for (LinkModel& link : figures.links) link = {1e-3, 1e10};
  check(best_plan(buckets, figures, {Wire::fp16}, 0).size() == 1, "100 small buckets ready at once are one transfer");
  buckets[50].narrowable = false;
  const Plan plan = best_plan(buckets, figures, {Wire::fp16}, 0);
  check(plan.size() == 3 && plan[1].first == 50 && plan[1].wire == Wire::fp32, "a bucket of another type stays alone");
}

void link_is_found_again() {
  std::vector<LinkSample> samples;
  for (const double bytes : {1e3, 1e5, 1e6, 2.5e7}) samples.push_back({bytes, 2e-4 + bytes / 3e9});
  const LinkModel link = fit_link(samples);
  check(std::abs(link.latency_s - 2e-4) < 1e-9 && std::abs(link.bytes_per_s / 3e9 - 1) < 1e-6, "fit_link finds latency and rate");
  const LinkModel one = fit_link({{1e6, 1e-3}});
  check(one.latency_s == 0 && std::abs(one.bytes_per_s / 1e9 - 1) < 1e-9, "one size gives a rate alone");
  const LinkModel falling = fit_link({{1e3, 2e-3}, {1e6, 1e-3}});
  check(falling.latency_s > 0 && falling.bytes_per_s > 0, "a falling line gives no negative rate");
}

void slices_and_merging() {
  const Buckets buckets{{1 << 10, true, 0}, {1 << 10, true, 0}, {1 << 24, true, 0}};
  check(sliced_plan(plain_plan(buckets, Wire::fp16), buckets, 1 << 22).back().slices == 4, "a large last bucket is cut");
  check(sliced_plan(plain_plan(buckets, Wire::fp32), buckets, 1 << 22).back().slices == 1, "FP32 needs no cast to overlap");
  check(is_cover(plain_plan(buckets, Wire::int8), buckets), "a plain plan covers");
  const Plan wide = on_lanes(plain_plan(buckets, Wire::fp32), buckets, 4, 1 << 20);
  check(plain_plan(buckets, Wire::fp32).front().is_plain() && !plain_plan(buckets, Wire::fp16).front().is_plain(), "plain is FP32");
  check(!wide.back().is_plain() && !on_lanes(plain_plan(buckets, Wire::fp32), buckets, 2, 1 << 30).back().is_plain(),
        "slices or lanes of FP32 are not sent as DDP would");
  check(wide[0].slices == 1 && wide[0].lanes == 4 && wide[2].slices == 4, "large buckets use all lanes, small ones take turns");
}

}  // namespace

int main() {
  small_neighbours_are_joined();
  best_plan_is_the_best();
  hidden_transfers_stay_wide();
  latency_merges();
  link_is_found_again();
  slices_and_merging();
  std::printf(failures == 0 ? "plan: all passed\n" : "plan: %d failed\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
