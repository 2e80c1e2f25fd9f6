#include "ddp/gloo_carrier.h"

#include <ATen/ATen.h>
#include <omp.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "exchange.h"

namespace gpualloc {
namespace {

// Elements of a chunk for each rank: large enough that a message's latency is small beside its transfer, small enough that
// narrowing, sending and summing overlap within a bucket of 25 MiB.
constexpr int64_t kShardNumel = int64_t{1} << 18;
constexpr size_t kInFlight = 4;
// Tags, away from the user's own messages: bit 30, the carrier of this group, the message of this carrier.
constexpr int kFirstTag = 1 << 30, kCarrierBits = 10, kMessageBits = 20;

// Carriers made for a group so far. Every rank makes the same ones in the same order; a message that one of them still had on its
// way must not reach the next.
int next_carrier(const std::string& group) {
  static std::mutex mutex;
  static auto* const counts = new std::map<std::string, int>;
  const std::lock_guard<std::mutex> lock(mutex);
  return (*counts)[group]++;
}

at::ScalarType dtype_of(Wire wire) { return wire == Wire::fp16 ? at::kHalf : at::kBFloat16; }

}  // namespace

GlooCarrier::GlooCarrier(const std::vector<Group>& lanes)
    : group_(lanes.front()), rank_(group_->getRank()), world_size_(group_->getSize()),
      number_(next_carrier(group_->getGroupName())), fp32_(lanes, false), thread_([this] { run(); }) {}

GlooCarrier::~GlooCarrier() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void GlooCarrier::carry(Shipment shipment) {
  if (shipment.wire == Wire::fp32) return fp32_.carry(std::move(shipment));
  put({std::move(shipment), std::nullopt});
}

c10::intrusive_ptr<c10::ivalue::Future> GlooCarrier::agree_max(const at::Tensor& source, const at::Tensor& target) {
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get());
  put({{}, Agreement{source, target, future}});
  return future;
}

void GlooCarrier::put(Order order) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failed_ != nullptr) std::rethrow_exception(failed_);
    waiting_.push_back(std::move(order));
  }
  changed_.notify_all();
}

void GlooCarrier::run() {
  omp_set_num_threads(1);  // this thread shares the rank's cores with its backward pass
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return ends_ || !waiting_.empty(); });
      if (waiting_.empty()) return;  // what was ordered is done even so: the peers wait for it
    }
    try {
      process();
    } catch (...) {
      fail_all(std::current_exception());
    }
  }
}

void GlooCarrier::process() {
  // Until nothing is in flight and nothing waits. The oldest work that others wait for goes first, new chunks fill the gaps.
  while (true) {
    const bool starts = started_.size() + reduced_.size() < kInFlight && may_start();
    if (starts) start();
    if (started_.size() >= 2 || (!starts && !started_.empty())) {
      reduce();
    } else if (!starts && !reduced_.empty()) {
      finish();
    } else if (!starts) {
      return;
    }
  }
}

bool GlooCarrier::may_start() {
  if (current_ != nullptr) return true;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (waiting_.empty()) return false;
  if (waiting_.front().agreement.has_value()) return true;
  current_ = std::make_shared<Shipment>(std::move(waiting_.front().shipment));
  waiting_.pop_front();
  next_begin_ = 0;
  if (current_->index == 0) chunk_number_ = 0;
  return true;
}

void GlooCarrier::start_agreement(Agreement agreement) {
  Chunk chunk{};
  chunk.serial = chunk_serial_++;
  chunk.is_last = true;
  const int64_t numel = agreement.source.numel();
  chunk.memory.sent = agreement.source.clone();  // every gradient before it has been narrowed
  chunk.memory.received = at::zeros({world_size_, numel}, agreement.source.options());
  for (int peer = 0; peer < world_size_; ++peer) {
    if (peer == rank_) continue;
    std::vector<at::Tensor> row{chunk.memory.received.select(0, peer)};
    chunk.results.push_back(group_->recv(row, peer, tag(chunk, 0)));
  }
  for (int peer = 0; peer < world_size_; ++peer) {
    std::vector<at::Tensor> own{chunk.memory.sent};
    if (peer == rank_) {
      chunk.memory.received.select(0, peer).copy_(own.front());
    } else {
      chunk.sends.push_back(group_->send(own, peer, tag(chunk, 0)));
    }
  }
  chunk.agreement = std::move(agreement);
  started_.push_back(std::move(chunk));
}

void GlooCarrier::start() {
  if (current_ == nullptr) {
    Agreement agreement;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      agreement = std::move(*waiting_.front().agreement);
      waiting_.pop_front();
    }
    return start_agreement(std::move(agreement));
  }
  int64_t total = 0;
  for (const at::Tensor& buffer : current_->buffers) total += buffer.numel();
  Chunk chunk{};
  chunk.shipment = current_;
  chunk.begin = next_begin_;
  chunk.numel = std::min(chunk_numel(current_->wire), total - next_begin_);
  chunk.shard = shard_numel(chunk.numel, world_size_);
  const bool is_int8 = current_->wire == Wire::int8;
  chunk.shard_bytes = is_int8 ? int8_shard_bytes(chunk.shard) : 2 * chunk.shard;
  chunk.number = chunk_number_++;
  next_begin_ += chunk.numel;
  chunk.is_last = next_begin_ == total;
  chunk.serial = chunk_serial_++;
  if (!free_.empty()) {
    chunk.memory = std::move(free_.back());
    free_.pop_back();
  }
  for (at::Tensor* memory : {&chunk.memory.sent, &chunk.memory.received, &chunk.memory.gathered}) {
    const int64_t bytes = world_size_ * chunk.shard_bytes;
    if (!memory->defined() || memory->numel() < bytes) *memory = at::zeros({bytes}, at::kByte);
  }

  if (has_data(chunk, rank_)) {
    for (int peer = 0; peer < world_size_; ++peer) {
      if (peer == rank_) continue;
      std::vector<at::Tensor> shard{shard_of(chunk.memory.received, chunk, peer)};
      chunk.shards.push_back(group_->recv(shard, peer, tag(chunk, 0)));
    }
  }
  for (int owner = 0; owner < world_size_; ++owner) {
    if (owner == rank_ || !has_data(chunk, owner)) continue;
    std::vector<at::Tensor> result{shard_of(chunk.memory.gathered, chunk, owner)};
    chunk.results.push_back(group_->recv(result, owner, tag(chunk, 1)));
  }

  const Shipment& shipment = *current_;
  const double scale = shipment.scale / world_size_;
  const std::vector<at::Tensor> parts = slices(shipment.buffers, chunk), residuals = slices(shipment.residuals, chunk);
  const at::Tensor sent = chunk.memory.sent.narrow(0, 0, world_size_ * chunk.shard_bytes);
  if (is_int8) {
    quantize(parts.front(), sent, world_size_, scale, residuals.empty() ? std::nullopt : std::optional(residuals.front()));
  } else {
    pack_all(parts, residuals, sent.view(dtype_of(shipment.wire)).narrow(0, 0, chunk.numel), scale, shipment.wire_state);
  }
  if (chunk.begin == 0) shipment.stamp(&TransferStamps::packed);

  for (int step = 1; step <= world_size_; ++step) {
    const int peer = next_peer(step);
    if (!has_data(chunk, peer)) continue;
    std::vector<at::Tensor> shard{shard_of(sent, chunk, peer)};
    if (peer == rank_) {
      shard_of(chunk.memory.received, chunk, rank_).copy_(shard.front());
    } else {
      chunk.sends.push_back(group_->send(shard, peer, tag(chunk, 0)));
    }
  }
  if (chunk.is_last) current_ = nullptr;
  started_.push_back(std::move(chunk));
}

void GlooCarrier::reduce() {
  Chunk& chunk = started_.front();
  if (chunk.agreement.has_value()) {  // nothing to sum
    reduced_.push_back(std::move(chunk));
    return started_.pop_front();
  }
  const Shipment& shipment = *chunk.shipment;
  for (const Work& work : chunk.shards) work->wait();
  if (has_data(chunk, rank_)) {
    const at::Tensor received = chunk.memory.received.narrow(0, 0, world_size_ * chunk.shard_bytes);
    const at::Tensor own = shard_of(chunk.memory.gathered, chunk, rank_);
    if (shipment.wire == Wire::int8) {
      std::optional<at::Tensor> error;
      if (!shipment.residuals.empty()) error = owner_error(chunk.number, chunk.shard, at::kCPU);
      reduce_int8(received, own, world_size_, error);
    } else {
      sum_shards(received.view(dtype_of(shipment.wire)), own.view(dtype_of(shipment.wire)), std::nullopt);
    }
    for (int step = 1; step < world_size_; ++step) {
      std::vector<at::Tensor> result{own};
      chunk.sends.push_back(group_->send(result, next_peer(step), tag(chunk, 1)));
    }
  }
  reduced_.push_back(std::move(chunk));
  started_.pop_front();
}

void GlooCarrier::finish() {
  Chunk& chunk = reduced_.front();
  if (chunk.agreement.has_value()) {
    for (const Work& work : chunk.results) work->wait();
    for (const Work& work : chunk.sends) work->wait();
    const Agreement agreement = std::move(*chunk.agreement);
    agreement.target.copy_(chunk.memory.received.amax(0));
    reduced_.pop_front();
    return agreement.future->markCompleted(agreement.target);
  }
  const Shipment& shipment = *chunk.shipment;
  for (const Work& work : chunk.results) work->wait();
  if (chunk.is_last) shipment.stamp(&TransferStamps::arrived);
  const std::vector<at::Tensor> parts = slices(shipment.buffers, chunk);
  const at::Tensor gathered = chunk.memory.gathered.narrow(0, 0, world_size_ * chunk.shard_bytes);
  if (shipment.wire == Wire::int8) {
    dequantize(gathered, parts.front(), world_size_, shipment.counters());
  } else {
    unpack(gathered.view(dtype_of(shipment.wire)).narrow(0, 0, chunk.numel), parts, 1 / shipment.scale, shipment.counters());
  }
  for (const Work& work : chunk.sends) work->wait();  // then its memory may be used again
  free_.push_back(std::move(chunk.memory));
  const std::shared_ptr<Shipment> arrived = chunk.is_last ? chunk.shipment : nullptr;
  reduced_.pop_front();
  if (arrived != nullptr) arrived->complete();
}

void GlooCarrier::fail_all(const std::exception_ptr& error) {
  for (const std::deque<Chunk>* chunks : {&started_, &reduced_}) {
    for (const Chunk& chunk : *chunks) {
      if (chunk.agreement.has_value()) {
        chunk.agreement->future->setErrorIfNeeded(error);
      } else if (chunk.is_last) {
        chunk.shipment->fail(error);
      }
    }
  }
  started_.clear();
  reduced_.clear();
  if (current_ != nullptr) current_->fail(error);
  current_ = nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  failed_ = error;
  for (const Order& order : waiting_) {
    order.shipment.fail(error);
    if (order.agreement.has_value()) order.agreement->future->setErrorIfNeeded(error);
  }
  waiting_.clear();
}

int64_t GlooCarrier::chunk_numel(Wire wire) const { return world_size_ * kShardNumel * (wire == Wire::int8 ? 2 : 1); }

// The chunk's part of each tensor, where it has one; the tensors are the shipment's, one after the other.
std::vector<at::Tensor> GlooCarrier::slices(const std::vector<at::Tensor>& tensors, const Chunk& chunk) const {
  std::vector<at::Tensor> parts;
  int64_t offset = 0;
  for (const at::Tensor& tensor : tensors) {
    const int64_t begin = std::max<int64_t>(chunk.begin - offset, 0), end = std::min(chunk.begin + chunk.numel - offset, tensor.numel());
    if (begin < end) parts.push_back(tensor.narrow(0, begin, end - begin));
    offset += tensor.numel();
  }
  return parts;
}

at::Tensor GlooCarrier::shard_of(const at::Tensor& memory, const Chunk& chunk, int rank) const {
  return memory.narrow(0, rank * chunk.shard_bytes, chunk.shard_bytes);
}

// Each rank sends to its right neighbour first, then to the one after it: in the same order they would all wait for one rank's link.
int GlooCarrier::next_peer(int step) const { return (rank_ + step) % world_size_; }

int GlooCarrier::tag(const Chunk& chunk, int stage) const {
  const auto message = static_cast<int>((2 * chunk.serial + stage) % (1 << kMessageBits));
  return kFirstTag | (number_ % (1 << kCarrierBits)) << kMessageBits | message;
}

}  // namespace gpualloc
