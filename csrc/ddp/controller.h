// Chooses the plan of wire="auto": measures a few plans in turn on the running job, and keeps the fastest.
//
// Every rank must decide alike, so it decides only on figures agreed over all ranks, at steps counted alike on all of them:
//
//   settle   the first steps with these buckets, everything in FP32
//   base     every bucket alone, FP32 and the narrow wires in turn      -> when buckets become ready; latency and rate of the link
//   lanes    the same on several communicators, where communication is exposed and the backend can have them -> their rate
//   trial    those and the plans that these figures suggest, in turn     -> kFinalists of the shortest steps, DDP's own plan among them
//   final    these again, for longer                                     -> the plan
//   decided  one step in kSamplePeriod is timed; when its span has drifted, back to settle
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ddp/plan.h"
#include "ddp/timeline.h"

namespace gpualloc {

// Element-wise maximum over the ranks; waits for all of them.
using AgreeMax = std::function<std::vector<double>(std::vector<double>)>;

// Makes the given number of communicators ready, on every rank at the same step; false where this rank has none.
using MakeLanes = std::function<bool(int)>;

class Controller {
 public:
  // `wires`: those it may choose from, FP32 first and the narrowest last. `max_lanes`: communicators it may use.
  Controller(std::vector<Wire> wires, int max_lanes, MakeLanes make_lanes)
      : wires_(std::move(wires)), max_lanes_(max_lanes), make_lanes_(std::move(make_lanes)) {}

  // Before a step's first bucket is handled. `buckets`: as the last step had them. Agrees with the other ranks when a decision is due.
  void begin_step(const Buckets& buckets, const AgreeMax& agree);

  // Of the step begun last. Empty until the buckets are known: then everything goes in FP32.
  const Plan& plan() const { return plan_; }
  // Whether the step begun last is to be timed; where to keep its stamps: those of the whole step alone where it has no transfers.
  std::shared_ptr<StepStamps> stamps() const { return stamps_; }
  // Whether gradients sent in FP32 are also to be looked at for the scale of the narrow steps that follow.
  bool settling() const { return phase_ == Phase::settle; }
  bool decided() const { return phase_ == Phase::decided; }

  // No more measuring and deciding, from the next step on; or again.
  void freeze(bool frozen) { frozen_ = frozen; }
  bool frozen() const { return frozen_; }

  // Adopts a plan made earlier for the same buckets, where they turn out to be the same.
  void adopt(Plan plan, Buckets buckets) { adopted_ = std::move(plan), adopted_for_ = std::move(buckets); }

  // What was measured and why this plan, for people.
  struct Candidate {
    std::string name;
    Plan plan;
    double step_s = 0;  // first bucket ready to the next step's first: shortest of the rounds, slowest rank; 0: not measured
  };
  const std::vector<Candidate>& candidates() const { return candidates_; }
  const Figures& figures() const { return figures_; }       // on one communicator
  const Figures& lane_figures() const { return lane_figures_; }  // on max_lanes; no rates where not measured
  const Buckets& buckets() const { return buckets_; }
  int max_lanes() const { return max_lanes_; }
  int chosen() const { return chosen_; }
  int decisions() const { return decisions_; }

 private:
  enum class Phase { settle, base, lanes, trial, final, decided };
  using Times = std::vector<std::vector<StepTimes>>;  // [active candidate][round * block]

  void restart(const Buckets& buckets);
  // Measures the candidates of these numbers in turn, `rounds` times each, `block` steps in a row.
  void start(Phase phase, std::vector<int> active, size_t rounds, size_t block = 1);
  void decide(const AgreeMax& agree);
  void learn_link(const Times& times, const AgreeMax& agree);
  void learn_lanes(const Times& times, const AgreeMax& agree);
  void propose();
  void compare(const Times& times, const AgreeMax& agree);
  void choose();
  bool has_drifted(const AgreeMax& agree);
  Times measured() const;
  int add(std::string name, Plan plan);

  const std::vector<Wire> wires_;
  const int max_lanes_;
  const MakeLanes make_lanes_;
  Phase phase_ = Phase::settle;
  Buckets buckets_;
  size_t step_ = 0;       // of this phase
  size_t num_steps_ = 0;  // in this phase
  size_t block_ = 1;      // of them in a row by the same plan
  std::vector<Candidate> candidates_;
  std::vector<int> active_;  // candidates of this phase
  std::vector<std::shared_ptr<StepStamps>> timed_;  // of this phase's steps, in order
  std::shared_ptr<StepStamps> stamps_;
  Plan plan_;
  Figures figures_, lane_figures_;
  int chosen_ = 0;
  int decisions_ = 0;
  double decided_span_s_ = 0;  // at the first review after the decision; 0 before it
  bool frozen_ = false;
  Plan adopted_;
  Buckets adopted_for_;
};

}  // namespace gpualloc
