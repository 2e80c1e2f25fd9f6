// Modelled links for tensors on the CPU: one thread lets transfers take their time, and tells when each is through.
//
// Transfers that are under way at the same time share a link: while the demands of one direction sum to D > 1, each moves at 1 / D of
// its own speed. The CPU time that real transfers take is spent here too, little by little, so that a rank that computes on the same
// core loses it. Free of torch.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>

#include "rehearsal/cost.h"

namespace gpualloc::rehearsal {

enum LinkLevel : int { kNodeLink = 0, kNetworkLink = 1, kNumLinks = 2 };

struct Traffic {
  Cost cost;
  LinkLevel link = kNodeLink;
  bool out = true, in = true;  // directions of the link it uses
};

// Transfers that start in order, so many at a time: the collectives of a process group.
struct TransferQueue {
  explicit TransferQueue(int limit) : max_in_flight(limit) {}
  const int max_in_flight;

 private:
  friend class HostLinks;
  struct Waiting;
  int in_flight = 0;
  std::deque<std::shared_ptr<Waiting>> waiting;
};

class HostLinks {
 public:
  // The process's links; their thread lives as long as the process does.
  static HostLinks& instance();

  // `move` runs on the links' thread when the transfer begins, `done` when it ends. A null queue: starts at once.
  void submit(Traffic traffic, const std::shared_ptr<TransferQueue>& queue, std::function<void()> move, std::function<void()> done);

 private:
  struct Transfer;

  HostLinks();
  void run();
  void start(std::shared_ptr<TransferQueue::Waiting> waiting, double now_s);
  void advance(double now_s);
  double rate(const Transfer& transfer) const;
  double next_event_s(double now_s) const;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<std::unique_ptr<Transfer>> active_;
  double load_[kNumLinks][2] = {};  // demands by link and direction
  double last_s_ = 0;               // up to when `active_` has moved
};

// Whether modelled links take time; if not, operations end at once. For what a step takes without communication.
extern std::atomic<bool> links_take_time;

}  // namespace gpualloc::rehearsal
