// What one step's communication took, from stamps taken on the way.
//
//   comm     = sum over the transfers of arrived(k) - max(packed(k), arrived(earlier ones)), not below 0
//   exposed  = done(last transfer) - ready(last bucket)        what backward alone would not have taken
//   hidden   = comm - exposed, not below 0
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "ddp/plan.h"
#include "ddp/stamp.h"

namespace gpualloc {

// Written by whoever carries the transfer; read when the step is over.
struct TransferStamps {
  Stamp packed;   // narrowed and handed over
  Stamp arrived;  // the sum is here
  Stamp done;     // widened and written back
};

struct StepStamps {
  // None: only the step as a whole is timed, from its first bucket to that of the following step.
  explicit StepStamps(size_t num_transfers) : transfers(num_transfers) {}
  bool has_transfers() const { return !transfers.empty(); }
  std::vector<Stamp> ready;  // of each bucket, in order, or of the first one alone
  std::vector<TransferStamps> transfers;
  Stamp next_begin;  // first bucket of the following step ready
};

// Seconds.
struct StepTimes {
  std::vector<double> ready;     // of each bucket, since the first
  std::vector<double> transfer;  // of each transfer
  double span = 0;               // first bucket ready to last one written back
  double period = 0;             // first bucket ready to the first of the next step
  double comm = 0;
  double exposed = 0;

  double hidden() const { return comm > exposed ? comm - exposed : 0; }
};

// Waits for the device where it has not come this far.
inline StepTimes times_of(const StepStamps& stamps) {
  StepTimes times;
  const Stamp& begin = stamps.ready.front();
  stamps.next_begin.wait();
  for (const Stamp& ready : stamps.ready) times.ready.push_back(ready.since(begin));
  double free_at = 0;
  for (const TransferStamps& transfer : stamps.transfers) {
    const double arrived = transfer.arrived.since(begin);
    times.transfer.push_back(std::max(0.0, arrived - std::max(transfer.packed.since(begin), free_at)));
    times.comm += times.transfer.back();
    free_at = std::max(free_at, arrived);
    times.span = std::max(times.span, transfer.done.since(begin));
  }
  times.period = stamps.next_begin.since(begin);
  times.exposed = std::max(0.0, times.span - times.ready.back());
  return times;
}

}  // namespace gpualloc
