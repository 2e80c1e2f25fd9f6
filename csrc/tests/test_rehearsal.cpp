// What a modelled collective costs, and the links that let it take that long: times, turns, and many threads at once.
#include <time.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "rehearsal/cost.h"
#include "rehearsal/host_links.h"

using namespace gpualloc::rehearsal;
using Points = std::vector<CostPoint>;

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

bool throws_invalid(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double process_cpu_s() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Counts down from the links' thread.
class Countdown {
 public:
  explicit Countdown(int count) : left_(count) {}
  void one_done() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--left_ == 0) all_done_.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_done_;
  int left_;
};

// Seconds until all of the traffic, submitted at once, is through.
double seconds_of(const std::vector<Traffic>& all) {
  Countdown countdown(static_cast<int>(all.size()));
  const double begin_s = now_s();
  for (const Traffic& traffic : all) {
    HostLinks::instance().submit(traffic, nullptr, [] {}, [&countdown] { countdown.one_done(); });
  }
  countdown.wait();
  return now_s() - begin_s;
}

// The shortest of a few rounds: what else runs on the machine only lengthens them.
double shortest_of(const std::vector<Traffic>& all) {
  double shortest_s = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 5; ++round) shortest_s = std::min(shortest_s, seconds_of(all));
  return shortest_s;
}

Traffic transfer(double transfer_s, double demand = 1, LinkLevel link = kNodeLink, bool out = true, bool in = true) {
  return {{0, transfer_s, demand, 0}, link, out, in};
}

void costs_lie_on_the_lines_between_points() {
  const CostTable table(Points{{1000, {1e-5, 1e-4, 0.5, 2e-5}}, {3000, {3e-5, 3e-4, 0.9, 4e-5}}});
  check(table.at(0).transfer_s == 1e-4 && table.at(1000).demand == 0.5, "up to the first point its cost holds");
  const Cost middle = table.at(2000), beyond = table.at(5000);
  check(std::abs(middle.latency_s - 2e-5) < 1e-12 && std::abs(middle.cpu_s - 3e-5) < 1e-12, "half-way between points is half-way");
  check(std::abs(beyond.transfer_s - 5e-4) < 1e-12 && beyond.demand == 1, "beyond the last the line goes on, demand up to 1");
  const CostTable falling(Points{{1, {0, 2, 1, 0}}, {2, {0, 1, 1, 0}}});
  check(falling.at(1000).transfer_s == 0, "no cost below 0");
  check(CostTable(Points{{8, {1, 2, 1, 3}}}).at(int64_t{1} << 60).cpu_s == 3, "a lone point holds everywhere");
}

void costs_that_cannot_be_are_refused() {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  check(throws_invalid([] { CostTable table(Points{}); }), "no point");
  check(throws_invalid([] { CostTable table(Points{{2, {}}, {1, {}}}); }), "points out of order");
  check(throws_invalid([] { CostTable table(Points{{1, {}}, {1, {}}}); }), "a point twice");
  for (const double bad : {inf, nan, -1.0}) {
    check(throws_invalid([bad] { CostTable table(Points{{bad, {}}}); }), "bytes");
    check(throws_invalid([bad] { CostTable table(Points{{1, {bad, 0, 1, 0}}}); }), "latency");
    check(throws_invalid([bad] { CostTable table(Points{{1, {0, bad, 1, 0}}}); }), "transfer");
    check(throws_invalid([bad] { CostTable table(Points{{1, {0, 0, bad, 0}}}); }), "demand");
    check(throws_invalid([bad] { CostTable table(Points{{1, {0, 0, 1, bad}}}); }), "CPU time");
  }
}

void a_type_of_its_own_comes_first() {
  const CostTables tables{{"all_reduce", CostTable(Points{{1, {1, 0, 1, 0}}})}, {"all_reduce/float16", CostTable(Points{{1, {2, 0, 1, 0}}})}};
  check(cost_of(tables, "all_reduce", "float16", 1).latency_s == 2, "the table of the type");
  check(cost_of(tables, "all_reduce", "bfloat16", 1).latency_s == 1, "else that of the operation");
  check(throws_invalid([&] { cost_of(tables, "all_gather", "", 1); }), "an operation without a table");
}

void transfers_take_their_time() {
  check(shortest_of({{{0.02, 0.03, 1, 0}}}) >= 0.05, "latency, then transfer");
  check(shortest_of({transfer(0.03), transfer(0.03)}) >= 0.06 - 1e-6, "two that fill a link share it");
  const double apart_s = shortest_of({transfer(0.05, 1, kNodeLink, true, false), transfer(0.05, 1, kNodeLink, false, true)});
  check(apart_s >= 0.05 && apart_s < 0.095, "out and in do not share");
  const double links_s = shortest_of({transfer(0.05), transfer(0.05, 1, kNetworkLink)});
  check(links_s >= 0.05 && links_s < 0.095, "two links do not share");
  const double light_s = shortest_of({transfer(0.05, 0.4), transfer(0.05, 0.5)});
  check(light_s >= 0.05 && light_s < 0.095, "what leaves room for another does not slow it");
}

void processor_time_is_spent() {
  const double before_s = process_cpu_s();
  seconds_of({{{0, 0.02, 1, 0.04}}, {{0, 0, 1, 0.01}}});
  check(process_cpu_s() - before_s >= 0.049, "transfers take the processor time that they cost");
}

void without_links_nothing_takes_time() {
  links_take_time = false;
  check(seconds_of({{{1000, 1000, 1, 1000}}}) < 100, "ends at once");
  links_take_time = true;
}

void a_queue_keeps_order_and_limit() {
  constexpr int kTransfers = 40, kLimit = 2;
  const auto queue = std::make_shared<TransferQueue>(kLimit);
  Countdown countdown(kTransfers);
  std::vector<int> moved;  // of the links' thread until all are done
  int in_flight = 0, most = 0;
  for (int number = 0; number < kTransfers; ++number) {
    HostLinks::instance().submit(
        transfer(1e-4 * (1 + number % 3), 0.1), queue,
        [&, number] {
          moved.push_back(number);
          most = std::max(most, ++in_flight);
        },
        [&] {
          --in_flight;
          countdown.one_done();
        });
  }
  countdown.wait();
  bool in_order = moved.size() == kTransfers;
  for (size_t place = 0; place < moved.size(); ++place) in_order = in_order && moved[place] == static_cast<int>(place);
  check(in_order, "a queue's transfers begin in the order in which they came");
  check(most == kLimit, "as many at a time as the queue allows, and so many");
}

void many_threads_at_once() {
  constexpr int kThreads = 4, kTransfers = 200;
  const auto queue = std::make_shared<TransferQueue>(3);
  Countdown countdown(kThreads * kTransfers * 2);
  std::atomic<int> moves{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int number = 0; number < kTransfers; ++number) {
        const Traffic traffic{{1e-6 * t, 1e-6 * (number % 7), 0.5, number % 11 == 0 ? 1e-6 : 0}, t % 2 ? kNodeLink : kNetworkLink};
        // Half of them from the links' own thread, as a hook that starts the next transfer when one ends.
        HostLinks::instance().submit(
            traffic, t % 2 ? queue : nullptr, [&moves] { ++moves; },
            [&, traffic] {
              countdown.one_done();
              HostLinks::instance().submit(traffic, queue, [&moves] { ++moves; }, [&countdown] { countdown.one_done(); });
            });
        if (number % 50 == 0) links_take_time = t % 2 == 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  countdown.wait();
  links_take_time = true;
  check(moves == kThreads * kTransfers * 2, "every transfer moved once");
}

}  // namespace

int main() {
  costs_lie_on_the_lines_between_points();
  costs_that_cannot_be_are_refused();
  a_type_of_its_own_comes_first();
  transfers_take_their_time();
  processor_time_is_spent();
  without_links_nothing_takes_time();
  a_queue_keeps_order_and_limit();
  many_threads_at_once();
  std::printf(failures == 0 ? "rehearsal: all passed\n" : "rehearsal: %d failed\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
