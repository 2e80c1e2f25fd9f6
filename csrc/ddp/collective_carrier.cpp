#include "ddp/collective_carrier.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "ddp/trace_range.h"
#include "exchange.h"

namespace gpualloc {
namespace {

constexpr size_t kMaxSlices = 16;

// torch 2.13 renames alltoall_base and _allgather_base and keeps the old names, which earlier ones have alone.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
c10::intrusive_ptr<c10d::Work> all_to_all(c10d::ProcessGroup& group, at::Tensor received, at::Tensor sent) {
  std::vector<int64_t> equal_splits;
  return group.alltoall_base(received, sent, equal_splits, equal_splits);
}

c10::intrusive_ptr<c10d::Work> all_gather(c10d::ProcessGroup& group, at::Tensor gathered, at::Tensor own) {
  return group._allgather_base(gathered, own);
}
#pragma GCC diagnostic pop

at::ScalarType dtype_of(Wire wire) { return wire == Wire::fp16 ? at::kHalf : wire == Wire::bf16 ? at::kBFloat16 : at::kByte; }

// A squared norm and the count of inf and NaN of gradients that came in FP32, where they are asked for.
void count_fp32(const std::vector<at::Tensor>& buffers, const Counters& counters) {
  if (!counters.sumsq.has_value()) return;
  for (const at::Tensor& buffer : buffers) {
    const at::Tensor squares = at::linalg_vector_norm(buffer, 2, std::nullopt, false, at::kDouble).square();
    counters.sumsq->add_(squares);
    const at::Tensor bad = squares.isfinite().logical_not().to(at::kLong);
    if (buffer.is_cpu()) {  // callbacks of several shipments may run at the same time
      __atomic_fetch_add(counters.nonfinite->data_ptr<int64_t>(), bad.item<int64_t>(), __ATOMIC_RELAXED);
    } else {
      counters.nonfinite->add_(bad);
    }
  }
}

}  // namespace

c10::intrusive_ptr<c10d::Work> start_average(c10d::ProcessGroup& group, std::vector<at::Tensor>& tensors) {
  const at::Tensor& first = tensors.front();
  // NCCL multiplies with 1 / world size as it reads, which gives the same bits as multiplying beforehand.
  const bool averages = first.is_cuda() && at::isFloatingType(first.scalar_type()) && group.getBackend(at::kCUDA)->getBackendName() == "nccl";
  if (!averages) {
    for (at::Tensor& tensor : tensors) tensor.mul_(1.0 / group.getSize());
  }
  const c10d::ReduceOp op = averages ? c10d::ReduceOp::AVG : c10d::ReduceOp::SUM;
  if (tensors.size() == 1) {
    c10d::AllreduceOptions options;
    options.reduceOp = op;
    return group.allreduce(tensors, options);
  }
  c10d::AllreduceCoalescedOptions options;
  options.reduceOp = op;
  return group.allreduce_coalesced(tensors, options);
}

at::Tensor Arena::take(int64_t bytes, c10::Device device) {
  const int64_t begin = (used_ + 255) / 256 * 256;
  used_ = begin + bytes;
  last_ = device;
  if (memory_.defined() && memory_.device() == device && used_ <= memory_.numel()) return memory_.narrow(0, begin, bytes);
  return at::zeros({bytes}, at::TensorOptions().dtype(at::kByte).device(device));  // of this step alone; the next one has room
}

void Arena::begin_step() {
  if (used_ > 0 && (!memory_.defined() || memory_.numel() < used_) && last_.has_value()) {
    memory_ = at::Tensor();  // freed first
    memory_ = at::zeros({used_}, at::TensorOptions().dtype(at::kByte).device(*last_));
  }
  used_ = 0;
}

void CollectiveCarrier::begin_step() { arena_.begin_step(); }

c10::intrusive_ptr<c10::ivalue::Future> CollectiveCarrier::agree_max(const at::Tensor& source, const at::Tensor& target) {
  std::vector<at::Tensor> tensors{target.copy_(source)};
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  return lanes_.front()->allreduce(tensors, options)->getFuture();
}

void CollectiveCarrier::carry(Shipment shipment) {
  for (int number = 0; number < shipment.slices; ++number) {
    Slice slice = slice_of(shipment, number);
    if (exchanges(shipment)) {
      exchange(shipment, slice);
      continue;
    }
    const Future arrived = start(shipment, slice);
    make_room(shipment, slice);
    if (arrived->completed() && !shipment.device().is_cpu()) {
      // One for all lanes: streams beyond the device's queues wait for each other without need.
      const c10::StreamGuard guard(side_stream(0, shipment.device()));
      arrived->wait();   // this stream and not the host
      arrived->value();  // throws what made it fail
      finish(shipment, slice);
      continue;
    }
    TORCH_CHECK(shipment.slices == 1, "gpualloc: slices need a backend whose collectives return at once, such as NCCL");
    // By pointer: the carrier outlives its shipments, and a callback must not be the last to hold the process group.
    arrived->addCallback([this, shipment, slice](c10::ivalue::Future& done) {
      try {
        done.value();
        finish(shipment, slice);
        shipment.complete();
      } catch (...) {
        shipment.fail(std::current_exception());
      }
    });
    return;
  }
  join(shipment);
}

// Exchanged slices' streams become one, on which the shipment is complete.
void CollectiveCarrier::join(const Shipment& shipment) {
  const int num_streams = exchanges(shipment) ? std::min(shipment.lanes, shipment.slices) : 1;
  const int first = exchanges(shipment) && shipment.slices == 1 ? shipment.index % shipment.lanes : 0;
  const c10::StreamGuard guard(side_stream(first, shipment.device()));
  for (int lane = 1; lane < num_streams; ++lane) {
    c10::Event arrived(shipment.device().type());
    arrived.record(side_stream(lane, shipment.device()));
    arrived.block(guard.current_stream());
  }
  shipment.complete();
}

bool CollectiveCarrier::exchanges(const Shipment& shipment) const {
  return shipment.wire == Wire::int8 || (sum_in_fp32_ && shipment.wire != Wire::fp32);
}

int64_t CollectiveCarrier::Slice::numel() const {
  int64_t numel = 0;
  for (const at::Tensor& buffer : buffers) numel += buffer.numel();
  return numel;
}

CollectiveCarrier::Slice CollectiveCarrier::slice_of(const Shipment& shipment, int number) const {
  if (shipment.slices == 1) return {shipment.buffers, shipment.residuals, 0, shipment.index % shipment.lanes, {}};
  const int64_t numel = shipment.buffers.front().numel();
  const int64_t step = (numel + shipment.slices - 1) / shipment.slices, begin = std::min(numel, number * step);
  const auto part = [&](const at::Tensor& whole) { return whole.narrow(0, begin, std::min(step, numel - begin)); };
  Slice slice{{part(shipment.buffers.front())}, {}, number, number % shipment.lanes, {}};
  if (!shipment.residuals.empty()) slice.residuals = {part(shipment.residuals.front())};
  return slice;
}

CollectiveCarrier::Future CollectiveCarrier::start(const Shipment& shipment, Slice& slice) {
  c10d::ProcessGroup& group = *lanes_[static_cast<size_t>(slice.lane)];
  std::vector<at::Tensor> tensors = slice.buffers;
  if (shipment.wire == Wire::fp32) return start_average(group, tensors)->getFuture();
  slice.wire = arena_.take(2 * slice.numel(), shipment.device());
  tensors = {slice.wire.view(dtype_of(shipment.wire))};
  {
    const TraceRange range("narrow to ", name_of(shipment.wire));
    pack_all(slice.buffers, slice.residuals, tensors.front(), shipment.scale / group.getSize(), shipment.wire_state);
  }
  return group.allreduce(tensors)->getFuture();
}

// For the collective that was just started. A timed event holds what the stream computes next until the narrowing has ended, so that the
// collective, which waits for the same, finds multiprocessors to begin on. Without one it waits behind the next kernels of the backward
// pass: measured, on two halves of an H100, at 69 ms a step of ResNet-50 instead of 56.
void CollectiveCarrier::make_room(const Shipment& shipment, const Slice& slice) const {
  TransferStamps* const stamps = slice.number == 0 ? shipment.own_stamps() : nullptr;
  if (stamps == nullptr && (shipment.device().is_cpu() || shipment.wire == Wire::fp32)) return;
  Stamp packed = Stamp::now(shipment.device());
  if (stamps != nullptr) stamps->packed = std::move(packed);
}

void CollectiveCarrier::finish(const Shipment& shipment, const Slice& slice) {
  if (slice.number == shipment.slices - 1) shipment.stamp(&TransferStamps::arrived);
  if (shipment.wire == Wire::fp32) return count_fp32(slice.buffers, shipment.counters(slice.number));
  const TraceRange range("widen from ", name_of(shipment.wire));
  unpack(slice.wire.view(dtype_of(shipment.wire)), slice.buffers, 1 / shipment.scale, shipment.counters(slice.number));
}

void CollectiveCarrier::exchange(const Shipment& shipment, const Slice& slice) {
  c10d::ProcessGroup& group = *lanes_[static_cast<size_t>(slice.lane)];
  const int64_t world_size = group.getSize(), bytes = shard_bytes(shipment, slice);
  const bool is_int8 = shipment.wire == Wire::int8;
  const at::ScalarType dtype = dtype_of(shipment.wire);
  const at::Tensor sent = arena_.take(world_size * bytes, shipment.device());
  const at::Tensor received = arena_.take(world_size * bytes, shipment.device());
  const at::Tensor gathered = arena_.take(world_size * bytes, shipment.device());
  const at::Tensor own = gathered.narrow(0, group.getRank() * bytes, bytes);
  std::optional<at::Tensor> residual, error;
  std::optional<TraceRange> range(std::in_place, "narrow to ", name_of(shipment.wire));
  if (is_int8) {
    if (!slice.residuals.empty()) {
      residual = slice.residuals.front();
      const size_t k = static_cast<size_t>(shipment.index) * kMaxSlices + static_cast<size_t>(slice.number);
      error = owner_error(k, shard_numel(slice.numel(), world_size), shipment.device());
    }
    quantize(slice.buffers.front(), sent, world_size, shipment.scale / static_cast<double>(world_size), residual);
  } else {
    const at::Tensor wire = sent.view(dtype).narrow(0, 0, slice.numel());
    pack_all(slice.buffers, slice.residuals, wire, shipment.scale / static_cast<double>(world_size), shipment.wire_state);
  }
  range.reset();
  const Future shards = all_to_all(group, received, sent)->getFuture();
  make_room(shipment, slice);
  TORCH_CHECK(shards->completed() && !shipment.device().is_cpu(),
              "gpualloc: wire=\"int8\" and accumulate=\"fp32\" need NCCL or gloo on the CPU, got a process group that is neither");
  const c10::StreamGuard guard(side_stream(slice.lane, shipment.device()));
  shards->wait();  // this stream and not the host, like all below
  range.emplace("sum in fp32");
  if (is_int8) {
    reduce_int8(received, own, world_size, error);
  } else {
    sum_shards(received.view(dtype), own.view(dtype), std::nullopt);
  }
  range.reset();
  all_gather(group, gathered, own)->getFuture()->wait();
  if (slice.number == shipment.slices - 1) shipment.stamp(&TransferStamps::arrived);
  range.emplace("widen from ", name_of(shipment.wire));
  if (is_int8) {
    dequantize(gathered, slice.buffers.front(), world_size, shipment.counters(slice.number));
  } else {
    unpack(gathered.view(dtype).narrow(0, 0, slice.numel()), slice.buffers, 1 / shipment.scale, shipment.counters(slice.number));
  }
}

int64_t CollectiveCarrier::shard_bytes(const Shipment& shipment, const Slice& slice) const {
  const int64_t shard = shard_numel(slice.numel(), lanes_.front()->getSize());
  return shipment.wire == Wire::int8 ? int8_shard_bytes(shard) : 2 * shard;
}

c10::Stream CollectiveCarrier::side_stream(int lane, c10::Device device) {
  const c10::impl::VirtualGuardImpl streams(device.type());
  while (side_streams_.size() <= static_cast<size_t>(lane)) side_streams_.push_back(streams.getStreamFromGlobalPool(device));
  c10::Stream& side = side_streams_[static_cast<size_t>(lane)];
  if (side.device() != device) side = streams.getStreamFromGlobalPool(device);
  return side;
}

}  // namespace gpualloc
