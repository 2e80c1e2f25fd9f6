// How a virtual group's operations run: what they cost, what is coalesced, where they wait. The operations themselves are in
// virtual_collectives.cpp and virtual_messages.cpp.
#include "rehearsal/virtual_group.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <atomic>

#include "rehearsal/device_lane.h"
#include "rehearsal/virtual_work.h"

namespace gpualloc::rehearsal {
namespace {

std::atomic<int64_t> total_operations{0}, total_bytes{0};
std::atomic<double> total_modelled_s{0};

std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kHalf: return "float16";
    case at::kBFloat16: return "bfloat16";
    default: return "";
  }
}

}  // namespace

void add_to_totals(int64_t bytes, double seconds) {
  ++total_operations;
  total_bytes += bytes;
  for (double before = total_modelled_s; !total_modelled_s.compare_exchange_weak(before, before + seconds);) {
  }
}

Totals totals() { return {total_operations, total_bytes, total_modelled_s}; }

VirtualGroup::VirtualGroup(int rank, int size, GroupOptions options)
    : Backend(rank, size), options_(std::move(options)), queue_(std::make_shared<TransferQueue>(options_.max_in_flight)) {
  TORCH_CHECK_VALUE(options_.peer_on_network.size() == static_cast<size_t>(size), "virtual group: expected a link for each of ", size,
                    " ranks, got ", options_.peer_on_network.size());
  TORCH_CHECK_VALUE(rank >= 0 && rank < size, "virtual group: rank ", rank, " is not in a group of ", size);
  TORCH_CHECK_VALUE(options_.max_in_flight >= 1, "virtual group: expected 1 or more collectives in flight, got ", options_.max_in_flight);
}

VirtualGroup::~VirtualGroup() = default;

Traffic VirtualGroup::traffic_of(const std::string& operation, const at::Tensor& like, int64_t bytes) const {
  Traffic traffic;
  traffic.link = options_.link;
  if (size_ > 1) traffic.cost = cost_of(options_.costs, operation, dtype_name(like.scalar_type()), bytes);
  return traffic;
}

VirtualGroup::Operation VirtualGroup::collective(c10d::OpType type, const std::string& name, Tensors tensors, int64_t bytes) const {
  Operation operation;
  operation.type = type;
  operation.bytes = bytes;
  operation.traffic = traffic_of(name, tensors.front(), bytes);
  operation.results = tensors;
  operation.tensors = std::move(tensors);
  return operation;
}

// Calls that NCCL would send as one: their latencies at the same time, their bytes one after the other, each direction for itself.
VirtualGroup::Operation VirtualGroup::merged(std::vector<Operation> operations, c10d::OpType type) {
  Operation all = operations.front();
  all.type = type;
  all.peer = -1;
  all.tensors.clear();
  all.results.clear();
  all.bytes = 0;
  std::vector<std::function<void()>> moves;
  double out_s = 0, in_s = 0;
  for (Operation& operation : operations) {
    const Traffic& traffic = operation.traffic;
    all.tensors.insert(all.tensors.end(), operation.tensors.begin(), operation.tensors.end());
    all.results.insert(all.results.end(), operation.results.begin(), operation.results.end());
    all.bytes += operation.bytes;
    all.traffic.cost.latency_s = std::max(all.traffic.cost.latency_s, traffic.cost.latency_s);
    all.traffic.cost.demand = std::max(all.traffic.cost.demand, traffic.cost.demand);
    all.traffic.link = std::max(all.traffic.link, traffic.link);
    if (traffic.out) out_s += traffic.cost.transfer_s;
    if (traffic.in) in_s += traffic.cost.transfer_s;
    all.blocks_host = all.blocks_host || operation.blocks_host;
    if (operation.move) moves.push_back(std::move(operation.move));
  }
  all.traffic.out = out_s > 0;
  all.traffic.in = in_s > 0;
  all.traffic.cost.transfer_s = std::max(out_s, in_s);
  all.move = [moves = std::move(moves)] {
    for (const auto& move : moves) move();
  };
  return all;
}

void VirtualGroup::startCoalescing() {
  TORCH_CHECK(!coalesced_.has_value(), "virtual group: startCoalescing was called twice");
  coalesced_.emplace();
}

VirtualGroup::Work VirtualGroup::endCoalescing() {
  TORCH_CHECK(coalesced_.has_value(), "virtual group: endCoalescing was called without startCoalescing");
  std::vector<Operation> operations = std::move(*coalesced_);
  coalesced_.reset();
  if (operations.empty()) return nullptr;
  return run(operations.size() == 1 ? std::move(operations.front()) : merged(std::move(operations), c10d::OpType::COALESCED));
}

VirtualGroup::Work VirtualGroup::run(Operation operation) {
  if (coalesced_.has_value()) {
    coalesced_->push_back(std::move(operation));
    auto placeholder = c10::make_intrusive<VirtualWork>(rank_, c10d::OpType::COALESCED, Tensors{}, std::nullopt);
    placeholder->complete();  // endCoalescing gives the Work to wait for
    return placeholder;
  }
  ++sequence_;
  const c10::Device device = operation.tensors.front().device();
  return device.is_cpu() ? run_on_host(std::move(operation), queue_) : run_on_device(std::move(operation), device);
}

VirtualGroup::Work VirtualGroup::run_on_host(Operation operation, std::shared_ptr<TransferQueue> queue) {
  add_to_totals(operation.bytes, operation.traffic.cost.latency_s + operation.traffic.cost.transfer_s);
  auto work = c10::make_intrusive<VirtualWork>(rank_, operation.type, operation.results, std::nullopt);
  const auto error = std::make_shared<std::exception_ptr>();
  auto move = [move = std::move(operation.move), error] {
    if (!move) return;
    try {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      move();
    } catch (...) {
      *error = std::current_exception();
    }
  };
  auto done = [work, error, tensors = std::move(operation.tensors)] {
    if (*error != nullptr) {
      work->fail(*error);
    } else {
      work->complete();
    }
  };
  HostLinks::instance().submit(operation.traffic, queue, std::move(move), std::move(done));
  return work;
}

VirtualGroup::Work VirtualGroup::run_on_device(Operation operation, c10::Device device) {
  const c10::DeviceGuard device_guard(device);
  std::unique_ptr<DeviceLane>& lane = lanes_[{device.index(), operation.peer}];
  if (lane == nullptr) lane = std::make_unique<DeviceLane>(device);
  const c10::impl::VirtualGuardImpl streams(device.type());
  c10::Event ready(device.type());
  ready.record(streams.getStream(device));
  ready.block(lane->stream());
  const c10::StreamGuard stream_guard(lane->stream());
  const bool takes_time = links_take_time && size_ > 1;
  if (takes_time) lane->mark_start();
  if (operation.move) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    operation.move();
  }
  if (takes_time) lane->hold(operation.traffic);
  add_to_totals(operation.bytes, operation.traffic.cost.latency_s + operation.traffic.cost.transfer_s);
  auto work = c10::make_intrusive<VirtualWork>(rank_, operation.type, operation.results, device);
  work->source_ = operation.type == c10d::OpType::RECV ? operation.peer : -1;
  work->complete_on(lane->stream(), std::move(operation.tensors), operation.blocks_host);
  return work;
}

}  // namespace gpualloc::rehearsal
