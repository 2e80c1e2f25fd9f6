#include "rehearsal/host_links.h"

#include <omp.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

namespace gpualloc::rehearsal {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kCpuQuantum_s = 500e-6;  // how often transfers take their CPU time: TCP's segments come in bursts of about that
constexpr double kMaxBurn_s = 1e-3;       // at a time, so that transfers that end meanwhile are not told late
constexpr double kLongestWait_s = 3600;   // at a time: seconds beyond the clock's range are no time to wait for
constexpr double kEps_s = 1e-9;
constexpr unsigned long kTimerSlack_ns = 1000;  // the kernel's default is 50 microseconds

double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

double thread_cpu() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void burn(double seconds) {
  for (const double end = thread_cpu() + seconds; thread_cpu() < end;) {
  }
}

}  // namespace

std::atomic<bool> links_take_time{true};

struct TransferQueue::Waiting {
  Traffic traffic;
  std::shared_ptr<TransferQueue> queue;
  std::function<void()> move, done;
};

struct HostLinks::Transfer {
  Traffic traffic;
  std::shared_ptr<TransferQueue> queue;
  std::function<void()> move, done;
  double moves_from_s;         // the end of its latency
  double remaining_s;          // of its transfer, alone on the link
  double cpu_debt_s = 0;       // due and not spent
  bool moves = false;
};

HostLinks& HostLinks::instance() {
  static auto* const links = new HostLinks;  // never destroyed: transfers may be under way when the process ends
  return *links;
}

HostLinks::HostLinks() : last_s_(now()) {
  std::thread([this] { run(); }).detach();
}

void HostLinks::submit(Traffic traffic, const std::shared_ptr<TransferQueue>& queue, std::function<void()> move, std::function<void()> done) {
  auto waiting = std::make_shared<TransferQueue::Waiting>(TransferQueue::Waiting{std::move(traffic), queue, std::move(move), std::move(done)});
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (queue != nullptr && queue->in_flight >= queue->max_in_flight) {
      queue->waiting.push_back(std::move(waiting));
      return;
    }
    start(std::move(waiting), now());
  }
  changed_.notify_all();
}

void HostLinks::start(std::shared_ptr<TransferQueue::Waiting> waiting, double now_s) {
  if (waiting->queue != nullptr) ++waiting->queue->in_flight;
  auto transfer = std::make_unique<Transfer>();
  transfer->traffic = waiting->traffic;
  transfer->queue = waiting->queue;
  transfer->move = std::move(waiting->move);
  transfer->done = std::move(waiting->done);
  if (!links_take_time) transfer->traffic.cost = {};
  transfer->moves_from_s = now_s + transfer->traffic.cost.latency_s;
  transfer->remaining_s = transfer->traffic.cost.transfer_s;
  active_.push_back(std::move(transfer));
}

double HostLinks::rate(const Transfer& transfer) const {
  const double* const load = load_[transfer.traffic.link];
  return 1 / std::max({1.0, transfer.traffic.out ? load[0] : 0, transfer.traffic.in ? load[1] : 0});
}

void HostLinks::advance(double now_s) {
  for (const auto& transfer : active_) {
    if (!transfer->moves) continue;
    const Cost& cost = transfer->traffic.cost;
    const double moved_s = std::min(transfer->remaining_s, (now_s - last_s_) * rate(*transfer));
    transfer->remaining_s -= moved_s;
    if (cost.transfer_s > 0) transfer->cpu_debt_s += cost.cpu_s * moved_s / cost.transfer_s;
  }
  last_s_ = now_s;
}

double HostLinks::next_event_s(double now_s) const {
  double next_s = std::numeric_limits<double>::infinity();
  for (const auto& transfer : active_) {
    next_s = std::min(next_s, transfer->moves ? now_s + transfer->remaining_s / rate(*transfer) : transfer->moves_from_s);
    if (transfer->moves && transfer->traffic.cost.cpu_s > 0) next_s = std::min(next_s, now_s + kCpuQuantum_s);
  }
  return next_s;
}

void HostLinks::run() {
  prctl(PR_SET_TIMERSLACK, kTimerSlack_ns);
  omp_set_num_threads(1);  // this thread shares the rank's cores with its computing
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    advance(now());
    // Begin what has waited out its latency.
    for (auto& transfer : active_) {
      if (transfer->moves || transfer->moves_from_s > last_s_ + kEps_s) continue;
      transfer->moves = true;
      const Traffic& traffic = transfer->traffic;
      if (traffic.out) load_[traffic.link][0] += traffic.cost.demand;
      if (traffic.in) load_[traffic.link][1] += traffic.cost.demand;
      if (traffic.cost.transfer_s <= 0) transfer->cpu_debt_s = traffic.cost.cpu_s;
      const double cpu_before_s = thread_cpu();
      lock.unlock();  // list items stay where they are while others are added
      transfer->move();
      lock.lock();
      transfer->cpu_debt_s -= thread_cpu() - cpu_before_s;  // a real transfer's CPU time holds that work too
    }
    advance(now());
    // Spend CPU time that is due.
    double debt_s = 0;
    for (const auto& transfer : active_) debt_s += std::max(0.0, transfer->cpu_debt_s);
    if (debt_s > 0) {
      const double spent_s = std::min(debt_s, kMaxBurn_s);
      lock.unlock();
      burn(spent_s);
      lock.lock();
      for (const auto& transfer : active_) {
        if (transfer->cpu_debt_s > 0) transfer->cpu_debt_s -= std::min(transfer->cpu_debt_s, spent_s * transfer->cpu_debt_s / debt_s);
      }
      advance(now());
    }
    // End what is through.
    std::vector<std::unique_ptr<Transfer>> ended;
    for (auto next = active_.begin(); next != active_.end();) {
      const auto item = next++;
      Transfer& transfer = **item;
      if (!transfer.moves || transfer.remaining_s > kEps_s || transfer.cpu_debt_s > kEps_s) continue;
      const Traffic& traffic = transfer.traffic;
      if (traffic.out) load_[traffic.link][0] -= traffic.cost.demand;
      if (traffic.in) load_[traffic.link][1] -= traffic.cost.demand;
      if (transfer.queue != nullptr) {
        TransferQueue& queue = *transfer.queue;
        --queue.in_flight;
        if (!queue.waiting.empty()) {
          start(std::move(queue.waiting.front()), last_s_);
          queue.waiting.pop_front();
        }
      }
      ended.push_back(std::move(*item));
      active_.erase(item);
    }
    if (!ended.empty()) {
      lock.unlock();
      for (const auto& transfer : ended) transfer->done();
      ended.clear();
      lock.lock();
      continue;
    }
    const double next_s = next_event_s(last_s_), wait_s = next_s - now();
    if (wait_s > 0) {
      if (next_s == std::numeric_limits<double>::infinity()) {
        changed_.wait(lock);
      } else {
        changed_.wait_for(lock, std::chrono::duration<double>(std::min(wait_s, kLongestWait_s)));
      }
    }
  }
}

}  // namespace gpualloc::rehearsal
