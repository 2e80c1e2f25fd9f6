// The controller as the ranks run it: each in a thread, agreeing with the others. They must choose alike, whatever each of them measures.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "ddp/controller.h"

using namespace gpualloc;

namespace {

constexpr int kRanks = 3;

int failures = 0;  // of the main thread

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

// An all-reduce of maxima between threads.
class Meeting {
 public:
  std::vector<double> max_of(const std::vector<double>& own) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (arrived_ == 0) joined_.assign(own.size(), own.front());
    if (own.size() != joined_.size()) std::abort();  // the ranks are at different points: they would hang
    for (size_t i = 0; i < own.size(); ++i) joined_[i] = arrived_ == 0 ? own[i] : std::max(joined_[i], own[i]);
    const int round = round_;
    if (++arrived_ == kRanks) {
      arrived_ = 0;
      agreed_ = joined_;
      ++round_;
      ++meetings;
      everybody_.notify_all();
    } else {
      everybody_.wait(lock, [&] { return round_ != round; });
    }
    return agreed_;
  }
  int meetings = 0;  // read when the ranks have ended

 private:
  std::mutex mutex_;
  std::condition_variable everybody_;
  std::vector<double> joined_, agreed_;
  int arrived_ = 0, round_ = 0;
};

void spend(std::chrono::microseconds time) {
  for (const auto end = std::chrono::steady_clock::now() + time; std::chrono::steady_clock::now() < end;) {
  }
}

// One rank of a job whose steps take as long as their plan says, more or less.
struct Rank {
  Rank(int rank, int max_lanes, bool has_lanes)
      : random(static_cast<unsigned>(rank)), controller({Wire::fp32, Wire::fp16}, max_lanes, [has_lanes](int) { return has_lanes; }) {}

  void step(const Buckets& buckets, const AgreeMax& agree) {
    if (controller.stamps() != nullptr) controller.stamps()->next_begin = now();
    controller.begin_step(buckets, agree);
    plans.push_back(controller.plan());
    const auto stamps = controller.stamps();
    if (stamps == nullptr) return;
    for (size_t i = 0; i < buckets.size(); ++i) stamps->ready.push_back(now());
    if (slow_after_narrow) {  // 16 bits are faster, but the step after them, if it is one too, takes longer still
      const bool was_narrow = std::exchange(is_narrow, is_all(controller.plan(), Wire::fp16));
      spend(std::chrono::microseconds(!is_narrow ? 1000 : was_narrow ? 3000 : 300));
    }
    for (size_t k = 0; k < controller.plan().size(); ++k) {
      TransferStamps transfer;
      transfer.packed = now();
      spend(std::chrono::microseconds(1 + random() % (controller.plan()[k].wire == Wire::fp32 ? 40 : 15)));
      transfer.arrived = now();
      transfer.done = now();
      if (stamps->has_transfers()) stamps->transfers[k] = std::move(transfer);
    }
  }

  static Stamp now() { return Stamp::now(c10::Device(c10::DeviceType::CPU)); }

  static bool is_all(const Plan& plan, Wire wire) {
    return std::all_of(plan.begin(), plan.end(), [wire](const Transfer& transfer) { return transfer.wire == wire; });
  }

  bool slow_after_narrow = false, is_narrow = false;
  std::mt19937 random;
  Controller controller;
  std::vector<Plan> plans;  // of each step
};

template <typename Body>
std::vector<std::unique_ptr<Rank>> run_ranks(int max_lanes, int rank_without_lanes, const Body& body) {
  Meeting meeting;
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<std::thread> threads;
  for (int r = 0; r < kRanks; ++r) ranks.push_back(std::make_unique<Rank>(r, max_lanes, r != rank_without_lanes));
  const AgreeMax agree = [&meeting](const std::vector<double>& own) { return meeting.max_of(own); };
  for (auto& rank : ranks) threads.emplace_back([&body, &agree, &rank] { body(*rank, agree); });
  for (std::thread& thread : threads) thread.join();
  return ranks;
}

bool are_alike(const std::vector<std::unique_ptr<Rank>>& ranks) {
  for (const auto& rank : ranks) {
    if (rank->plans != ranks.front()->plans || rank->controller.decided() != ranks.front()->controller.decided()) return false;
  }
  return true;
}

const Buckets kBuckets{{1 << 20, true, 0}, {1 << 18, true, 0}, {1 << 10, false, 0}, {1 << 22, true, 0}};

void ranks_decide_alike() {
  for (const int rank_without_lanes : {-1, 1}) {
    const auto ranks = run_ranks(4, rank_without_lanes, [](Rank& rank, const AgreeMax& agree) {
      for (int step = 0; step < 400 && !rank.controller.decided(); ++step) rank.step(kBuckets, agree);
      for (int step = 0; step < 1200; ++step) rank.step(kBuckets, agree);  // past reviews of a decided plan, which may measure anew
    });
    check(are_alike(ranks), "every rank sends by the same plan at every step");
    check(ranks.front()->controller.decisions() > 0, "a plan is decided on");
    bool has_lanes = false;
    for (const Plan& plan : ranks.front()->plans) {
      for (const Transfer& transfer : plan) has_lanes = has_lanes || transfer.lanes > 1;
    }
    check(rank_without_lanes < 0 || !has_lanes, "no lanes where one rank has none");
  }
}

void a_plan_is_judged_by_steps_in_a_row() {
  const Buckets narrowable{{1 << 20, true, 0}, {1 << 18, true, 0}};
  const auto ranks = run_ranks(1, -1, [&narrowable](Rank& rank, const AgreeMax& agree) {
    rank.slow_after_narrow = true;
    for (int step = 0; step < 200; ++step) rank.step(narrowable, agree);
  });
  check(are_alike(ranks) && ranks.front()->controller.decided(), "decided within 200 steps");
  check(!Rank::is_all(ranks.front()->plans.back(), Wire::fp16), "what is fast only in turns with others is not chosen");
}

void other_buckets_start_anew() {
  Buckets fewer = kBuckets;
  fewer.pop_back();
  const auto ranks = run_ranks(1, -1, [&fewer](Rank& rank, const AgreeMax& agree) {
    rank.step({}, agree);
    for (int step = 0; step < 20; ++step) rank.step(kBuckets, agree);
    for (int step = 0; step < 20; ++step) rank.step(fewer, agree);
  });
  check(are_alike(ranks) && ranks.front()->plans.back().back().last == 2, "the plan covers the buckets there are");
  check(ranks.front()->plans.front().empty(), "no plan before the buckets are known");
}

void frozen_measures_nothing_and_adopted_is_kept() {
  const auto frozen = run_ranks(1, -1, [](Rank& rank, const AgreeMax& agree) {
    rank.controller.freeze(true);
    for (int step = 0; step < 100; ++step) rank.step(kBuckets, agree);
  });
  check(are_alike(frozen) && !frozen.front()->controller.decided() && frozen.front()->plans.back() == plain_plan(kBuckets, Wire::fp32),
        "frozen before a decision: plain FP32");
  const Plan saved = plain_plan(kBuckets, Wire::fp16);
  const auto adopted = run_ranks(1, -1, [&saved](Rank& rank, const AgreeMax& agree) {
    rank.controller.adopt(saved, kBuckets);
    for (int step = 0; step < 100; ++step) rank.step(kBuckets, agree);
  });
  check(are_alike(adopted) && adopted.front()->controller.decided() && adopted.front()->plans.back() == saved, "an adopted plan is used");
}

}  // namespace

int main() {
  ranks_decide_alike();
  a_plan_is_judged_by_steps_in_a_row();
  other_buckets_start_anew();
  frozen_measures_nothing_and_adopted_is_kept();
  std::printf(failures == 0 ? "controller: all passed\n" : "controller: %d failed\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
