#include "ddp/controller.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace gpualloc {
namespace {

constexpr size_t kSettleSteps = 3;  // allocators, autotuners and DDP's own first steps
constexpr size_t kBaseRounds = 3, kTrialRounds = 2, kFinalRounds = 3;
constexpr size_t kTrialBlock = 2, kFinalBlock = 4;  // steps by the same plan in a row, the first of which is not counted
constexpr size_t kFinalists = 4;
constexpr size_t kSamplePeriod = 16;  // decided: one step in so many is timed,
constexpr size_t kReviewPeriod = 512;  // and after so many the timed ones are looked at
constexpr double kDrift = 0.25;        // relative change of the span that calls for new measurements
constexpr double kEqual = 0.01;        // steps expected to differ by less are equal; the wider wire is then proposed
constexpr double kTie = 0.005;         // and taken where the measured ones differ by less: whose order two measurements may swap
constexpr double kWorthLanes = 0.03;   // share of the step that is exposed, from which on more communicators are tried
constexpr int64_t kMinSliceBytes = int64_t{1} << 20;
constexpr int64_t kMinPipelinedBytes = int64_t{1} << 23;  // of a slice on the same communicator

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

template <typename Of>
double median_of(const std::vector<StepTimes>& steps, const Of& of) {
  std::vector<double> values;
  for (const StepTimes& step : steps) values.push_back(of(step));
  return median(values);
}

double wire_bytes(const Plan& plan, const Buckets& buckets) {
  double bytes = 0;
  for (const Transfer& transfer : plan) {
    for (int i = transfer.first; i <= transfer.last; ++i) bytes += static_cast<double>(buckets[i].numel) * bytes_per_element(transfer.wire);
  }
  return bytes;
}

}  // namespace

void Controller::begin_step(const Buckets& buckets, const AgreeMax& agree) {
  ++step_;
  if (buckets != buckets_) {
    restart(buckets);
  } else if (buckets.empty()) {
    stamps_ = nullptr;
    return;
  } else if (phase_ != Phase::decided) {
    if (step_ == num_steps_) decide(agree);
  } else if (step_ % kReviewPeriod == 0) {
    if (!frozen_ && has_drifted(agree)) restart(buckets);
    timed_.clear();
  }

  const bool measures = phase_ != Phase::settle && phase_ != Phase::decided;
  if (measures) plan_ = candidates_[static_cast<size_t>(active_[step_ / block_ % active_.size()])].plan;
  const bool timed = measures || (phase_ == Phase::decided && step_ % kSamplePeriod == 0);
  // Of plans that compete only the step is timed: stamps within it change what they measure.
  const bool competes = phase_ == Phase::trial || phase_ == Phase::final;
  stamps_ = timed ? std::make_shared<StepStamps>(competes ? 0 : plan_.size()) : nullptr;
  if (timed) timed_.push_back(stamps_);
}

void Controller::restart(const Buckets& buckets) {
  buckets_ = buckets;
  candidates_.clear();
  plan_ = plain_plan(buckets, Wire::fp32);
  if (!adopted_.empty() && adopted_for_ == buckets && (adopted_.front().lanes == 1 || make_lanes_(max_lanes_))) {
    add("as saved", adopted_);
    plan_ = adopted_;
    chosen_ = 0;
    decided_span_s_ = 0;
    return start(Phase::decided, {}, 0);
  }
  start(Phase::settle, {}, 0);
}

void Controller::start(Phase phase, std::vector<int> active, size_t rounds, size_t block) {
  phase_ = phase;
  active_ = std::move(active);
  block_ = block;
  step_ = 0;
  num_steps_ = phase == Phase::settle ? kSettleSteps : rounds * block * active_.size();
  timed_.clear();
}

void Controller::decide(const AgreeMax& agree) {
  switch (phase_) {
    case Phase::settle: {
      if (frozen_) return start(Phase::settle, {}, 0);
      std::vector<int> base;
      for (const Wire wire : wires_) base.push_back(add(std::string("each bucket in ") + name_of(wire), plain_plan(buckets_, wire)));
      return start(Phase::base, base, kBaseRounds);
    }
    case Phase::base: return learn_link(measured(), agree);
    case Phase::lanes: return learn_lanes(measured(), agree);
    case Phase::trial: {
      compare(measured(), agree);
      std::sort(active_.begin(), active_.end(), [this](int a, int b) {
        return candidates_[static_cast<size_t>(a)].step_s < candidates_[static_cast<size_t>(b)].step_s;
      });
      std::vector<int> finalists(active_.begin(), active_.begin() + static_cast<std::ptrdiff_t>(std::min(active_.size(), kFinalists)));
      constexpr int kPlain = 0;  // the candidate that does what DDP does without a hook
      if (std::find(finalists.begin(), finalists.end(), kPlain) == finalists.end()) finalists.back() = kPlain;
      return start(Phase::final, std::move(finalists), kFinalRounds, kFinalBlock);
    }
    case Phase::final: compare(measured(), agree); return choose();
    case Phase::decided: return;
  }
}

int Controller::add(std::string name, Plan plan) {
  for (size_t c = 0; c < candidates_.size(); ++c) {
    if (candidates_[c].plan == plan) return static_cast<int>(c);
  }
  candidates_.push_back({std::move(name), std::move(plan), 0});
  return static_cast<int>(candidates_.size()) - 1;
}

Controller::Times Controller::measured() const {
  Times times(active_.size());
  for (size_t step = 0; step < timed_.size(); ++step) times[step / block_ % active_.size()].push_back(times_of(*timed_[step]));
  return times;
}

void Controller::learn_link(const Times& times, const AgreeMax& agree) {
  const size_t num_buckets = buckets_.size(), num_wires = wires_.size();
  // Agreed: a bucket is ready when the slowest rank has it; a transfer takes what it takes the rank that came last to it.
  std::vector<double> agreed;
  for (size_t i = 0; i < num_buckets; ++i) {
    std::vector<double> ready;
    for (const auto& rounds : times) {
      for (const StepTimes& step : rounds) ready.push_back(step.ready[i]);
    }
    agreed.push_back(median(ready));
  }
  for (const auto& rounds : times) {
    for (size_t i = 0; i < num_buckets; ++i) agreed.push_back(-median_of(rounds, [i](const StepTimes& step) { return step.transfer[i]; }));
  }
  agreed.push_back(median_of(times.back(), [](const StepTimes& step) { return step.exposed / step.period; }));
  agreed = agree(std::move(agreed));

  figures_ = lane_figures_ = {};
  figures_.ready_s.assign(agreed.begin(), agreed.begin() + static_cast<std::ptrdiff_t>(num_buckets));
  lane_figures_.ready_s = figures_.ready_s;
  for (size_t w = 0; w < num_wires; ++w) {
    std::vector<LinkSample> samples;
    for (size_t i = 0; i < num_buckets; ++i) {
      if (!buckets_[i].narrowable) continue;
      samples.push_back({static_cast<double>(buckets_[i].numel) * bytes_per_element(wires_[w]), -agreed[num_buckets * (w + 1) + i]});
    }
    figures_.links[static_cast<size_t>(wires_[w])] = samples.empty() ? LinkModel{0, 1} : fit_link(samples);
  }

  if (max_lanes_ > 1 && agreed.back() > kWorthLanes && agree({make_lanes_(max_lanes_) ? 0.0 : 1.0}).front() == 0) {
    std::vector<int> wide;
    for (const Wire wire : wires_) {
      const std::string name = std::string("each bucket in ") + name_of(wire) + ", " + std::to_string(max_lanes_) + " communicators";
      wide.push_back(add(name, on_lanes(plain_plan(buckets_, wire), buckets_, max_lanes_, kMinSliceBytes)));
    }
    return start(Phase::lanes, wide, kBaseRounds);
  }
  propose();
}

void Controller::learn_lanes(const Times& times, const AgreeMax& agree) {
  std::vector<double> agreed;
  for (const auto& rounds : times) agreed.push_back(-median_of(rounds, [](const StepTimes& step) { return step.comm; }));
  agreed = agree(std::move(agreed));
  for (size_t w = 0; w < wires_.size(); ++w) {
    // Transfers overlap, so only their sum tells the rate; the latency stays that of one.
    const Plan plain = plain_plan(buckets_, wires_[w]);
    const double latency = figures_.links[static_cast<size_t>(wires_[w])].latency_s;
    const double seconds = std::max(-agreed[w] - latency * static_cast<double>(plain.size()), 1e-9);
    lane_figures_.links[static_cast<size_t>(wires_[w])] = {latency, wire_bytes(plain, buckets_) / seconds};
  }
  propose();
}

void Controller::propose() {
  const Plan mixed = best_plan(buckets_, figures_, wires_, kEqual);
  add("merged, as narrow as exposed", mixed);
  for (const Wire wire : wires_) add(std::string("merged in ") + name_of(wire), best_plan(buckets_, figures_, {wire}, 0));
  add("merged, as narrow as exposed, last bucket in slices", sliced_plan(mixed, buckets_, kMinPipelinedBytes));
  if (lane_figures_.links[static_cast<size_t>(wires_.back())].bytes_per_s > 0) {
    const Plan wide = best_plan(buckets_, lane_figures_, wires_, kEqual);
    for (int lanes = 2; lanes <= max_lanes_; lanes *= 2) {
      add("merged, as narrow as exposed, " + std::to_string(lanes) + " communicators", on_lanes(wide, buckets_, lanes, kMinSliceBytes));
    }
  }
  std::vector<int> all(candidates_.size());
  std::iota(all.begin(), all.end(), 0);
  start(Phase::trial, std::move(all), kTrialRounds, kTrialBlock);
}

void Controller::compare(const Times& times, const AgreeMax& agree) {
  // The whole step and not the communication alone, which can also slow what is computed beside it and after it. Of a block's steps the
  // mean without the first, which still feels the plan before. The shortest of the rounds, since what else happens on a machine only
  // lengthens steps.
  std::vector<double> figures;
  for (const auto& steps : times) {
    for (size_t begin = 0; begin < steps.size(); begin += block_) {
      double period = 0;
      for (size_t k = begin + 1; k < begin + block_; ++k) period += steps[k].period;
      figures.push_back(period / static_cast<double>(block_ - 1));
    }
  }
  figures = agree(std::move(figures));
  auto next = figures.begin();
  for (size_t a = 0; a < active_.size(); ++a) {
    Candidate& candidate = candidates_[static_cast<size_t>(active_[a])];
    candidate.step_s = std::numeric_limits<double>::infinity();
    for (size_t round = 0; round < times[a].size() / block_; ++round) candidate.step_s = std::min(candidate.step_s, *next++);
  }
}

void Controller::choose() {
  double best = std::numeric_limits<double>::infinity(), most_bytes = -1;
  for (const int c : active_) best = std::min(best, candidates_[static_cast<size_t>(c)].step_s);
  for (const int c : active_) {
    const Candidate& candidate = candidates_[static_cast<size_t>(c)];
    const double bytes = wire_bytes(candidate.plan, buckets_);
    if (candidate.step_s <= best * (1 + kTie) && bytes > most_bytes) chosen_ = c, most_bytes = bytes;
  }
  plan_ = candidates_[static_cast<size_t>(chosen_)].plan;
  decided_span_s_ = 0;
  ++decisions_;
  start(Phase::decided, {}, 0);
}

bool Controller::has_drifted(const AgreeMax& agree) {
  std::vector<double> spans;
  for (const auto& stamps : timed_) spans.push_back(times_of(*stamps).span);
  const double span = agree({*std::min_element(spans.begin(), spans.end())}).front();
  const double before = std::exchange(decided_span_s_, decided_span_s_ > 0 ? decided_span_s_ : span);
  return before > 0 && (span > before * (1 + kDrift) || span < before * (1 - kDrift));
}

}  // namespace gpualloc
