#include "ddp/gradient_hook.h"

#include <ATen/ATen.h>

#include <utility>

#include "ddp/collective_carrier.h"
#include "ddp/gloo_carrier.h"
#include "ddp/trace_range.h"

namespace gpualloc {
namespace {

// A fixed wire is timed once in so many steps.
constexpr int64_t kSamplePeriod = 16;
// Up to so many bytes on the wire, neighbours travel as one on a fixed wire of 16 bits: a launch and a latency are all that each costs.
constexpr int64_t kJoinedBytes = int64_t{1} << 18;

int64_t bytes_of(const at::Tensor& buffer) {
  if (!buffer.is_sparse()) return static_cast<int64_t>(buffer.nbytes());
  return static_cast<int64_t>(buffer._values().nbytes() + buffer._indices().nbytes());
}

std::vector<Wire> choices(bool allow_int8) {
  if (allow_int8) return {Wire::fp32, Wire::fp16, Wire::int8};
  return {Wire::fp32, Wire::fp16};
}

}  // namespace

GradientHookState::GradientHookState(Group group, HookOptions options)
    : group_(group),
      lanes_{std::move(group)},
      options_(std::move(options)),
      average_(1.0 / group_->getSize()),
      counters_(group_->getSize(), options_.dynamic_scale && options_.wire.value_or(Wire::fp16) == Wire::fp16, options_.sum_squares) {
  if (options_.wire.has_value()) return;
  controller_ = std::make_unique<Controller>(choices(options_.allow_int8), options_.max_lanes, [this](int count) { return make_lanes(count); });
}

c10::intrusive_ptr<c10::ivalue::Future> GradientHookState::run(c10d::GradBucket& bucket) {
  const TraceRange range("hook, bucket ", bucket.getIndex());
  const std::lock_guard<std::mutex> lock(mutex_);
  const at::Tensor buffer = bucket.getBuffer();
  if (bucket.getIndex() == 0) begin_step(buffer.device());
  const BucketShape shape = shape_of(bucket);
  seen_.push_back(shape);
  const Transfer transfer = transfer_of(shape);
  if (times_transfers() || (stamps_ != nullptr && bucket.getIndex() == 0)) stamps_->ready.push_back(Stamp::now(buffer.device()));

  Future future;
  if (!shape.narrowable || (transfer.is_plain() && !times_transfers() && !options_.sum_squares)) {
    future = average_alone(bucket);
  } else {
    future = c10::make_intrusive<c10::ivalue::Future>(
        c10::TensorType::get(), buffer.is_cpu() ? std::vector<c10::Device>{} : std::vector<c10::Device>{buffer.device()});
    pending_.push_back({buffer, future, residual_for(shape, transfer, buffer.device())});
    if (transfer.last == static_cast<int>(bucket.getIndex()) || bucket.isLast()) dispatch(transfer);
  }
  if (bucket.isLast()) {
    counters_.end_step([this](const at::Tensor& source, const at::Tensor& target) { return carrier(source.device()).agree_max(source, target); });
  }
  return future;
}

BucketShape GradientHookState::shape_of(const c10d::GradBucket& bucket) const {
  const at::Tensor& buffer = bucket.getBuffer();
  // Only FP32 loses nothing its user asked for. DDP hands a complex gradient over as pairs of FP32.
  const bool narrowable = !buffer.is_sparse() && buffer.scalar_type() == at::kFloat && !bucket.getParameters().front().is_complex();
  return {buffer.numel(), narrowable, buffer.device().index()};
}

const Plan& GradientHookState::plan() const { return controller_ != nullptr ? controller_->plan() : fixed_plan_; }

// The transfer that the bucket seen last belongs to. Where the buckets are not those of the plan, it travels alone.
Transfer GradientHookState::transfer_of(const BucketShape& shape) {
  const int index = static_cast<int>(seen_.size()) - 1;
  if (on_plan_ && (static_cast<size_t>(index) >= planned_.size() || !(planned_[static_cast<size_t>(index)] == shape))) {
    on_plan_ = false;
    stamps_ = nullptr;
    if (!pending_.empty()) dispatch({index - static_cast<int>(pending_.size()), index - 1, pending_wire_});
  }
  Transfer transfer{index, index, shape.narrowable ? options_.wire.value_or(Wire::fp32) : Wire::fp32};
  if (on_plan_) {
    while (plan()[transfer_index_].last < index) ++transfer_index_;
    transfer = plan()[transfer_index_];
  } else {
    transfer_index_ = static_cast<size_t>(index);
  }
  if (transfer.wire == Wire::fp16 && options_.dynamic_scale && !counters_.scale_known()) transfer.wire = Wire::fp32;
  pending_wire_ = transfer.wire;
  return transfer;
}

// All pending buckets as one transfer.
void GradientHookState::dispatch(const Transfer& transfer) {
  Shipment shipment;
  for (Pending& pending : pending_) {
    shipment.buffers.push_back(std::move(pending.buffer));
    shipment.futures.push_back(std::move(pending.future));
    if (pending.residual.defined()) shipment.residuals.push_back(std::move(pending.residual));
  }
  pending_.clear();
  shipment.wire = transfer.wire;
  shipment.slices = transfer.slices;
  shipment.lanes = transfer.lanes;
  shipment.index = static_cast<int>(transfer_index_);
  shipment.stamps = times_transfers() ? stamps_ : nullptr;
  if (transfer.wire == Wire::fp16) shipment.scale = options_.dynamic_scale ? 1 : options_.scale;
  counters_.count(shipment);
  int64_t numel = 0;
  for (const at::Tensor& buffer : shipment.buffers) {
    numel += buffer.numel();
    if (transfer.wire == Wire::fp32) note_fp32(buffer);
  }
  ++totals_.transfers;
  totals_.wire_bytes += static_cast<int64_t>(static_cast<double>(numel) * bytes_per_element(transfer.wire));
  carrier(shipment.device()).carry(std::move(shipment));
}

// A bucket by itself in its own type, with nothing to widen or to count.
c10::intrusive_ptr<c10::ivalue::Future> GradientHookState::average_alone(c10d::GradBucket& bucket) {
  at::Tensor& buffer = bucket.getBufferRef();
  if (seen_.back().narrowable) {
    note_fp32(buffer);
  } else {
    uncounted_.emplace_back(buffer.getIntrusivePtr());
  }
  ++totals_.transfers;
  totals_.wire_bytes += bytes_of(buffer);
  TransferStamps* const stamps = times_transfers() ? &stamps_->transfers[transfer_index_] : nullptr;
  if (stamps != nullptr) stamps->packed = Stamp::now(buffer.device());
  Future future;
  if (group_->getSize() == 1 && !buffer.is_sparse()) {  // its own average
    future = c10::make_intrusive<c10::ivalue::Future>(
        c10::TensorType::get(), buffer.is_cpu() ? std::vector<c10::Device>{} : std::vector<c10::Device>{buffer.device()});
    future->markCompleted(buffer);
  } else if (buffer.is_sparse()) {
    buffer.mul_(average_);
    c10d::AllreduceOptions options;
    if (bucket.getSparseGradIndices().has_value()) options.sparseIndices = bucket.getSparseGradIndices();
    std::vector<at::Tensor> tensors{buffer};
    future = group_->allreduce(tensors, options)->getFuture();
  } else {
    std::vector<at::Tensor> tensors{buffer};
    future = start_average(*group_, tensors)->getFuture();
  }
  if (stamps == nullptr) return future;
  return future->then(
      [buffer, owner = stamps_, stamps](c10::ivalue::Future& done) -> c10::IValue {
        done.value();  // throws what made it fail
        stamps->arrived = Stamp::now(buffer.device());
        stamps->done = Stamp::now(buffer.device());
        return buffer;
      },
      c10::TensorType::get());
}

void GradientHookState::begin_step(c10::Device device) {
  // The reducer waited for all buckets of the last step, so what they counted is whole.
  if (stamps_ != nullptr) {
    stamps_->next_begin = Stamp::now(device);
    if (times_transfers()) last_stamps_ = stamps_, last_timed_step_ = totals_.steps;
  }
  counters_.finish_step();
  pending_.clear();
  ++totals_.steps;
  counters_.begin_step(totals_.steps);

  if (controller_ != nullptr) {
    controller_->begin_step(seen_, [&](std::vector<double> values) { return agree_max(std::move(values), device); });
    stamps_ = controller_->stamps();
    planned_ = controller_->plan().empty() ? Buckets{} : controller_->buckets();
  } else {
    if (seen_ != planned_) fixed_plan_ = joined_plan(seen_, *options_.wire, *options_.wire == Wire::fp32 ? 0 : kJoinedBytes);
    planned_ = seen_;
    stamps_ = totals_.steps % kSamplePeriod == 0 && !planned_.empty() ? std::make_shared<StepStamps>(fixed_plan_.size()) : nullptr;
  }
  if (carrier_ != nullptr) {
    carrier_->begin_step();
    if (plan() != carried_plan_) carrier_->owner_errors().clear();  // they belong to other pieces now
  }
  carried_plan_ = plan();
  seen_.clear();
  uncounted_.clear();
  on_plan_ = true;
  transfer_index_ = 0;
  residual_begin_ = 0;
}

bool GradientHookState::make_lanes(int count) {
  if (!options_.make_lanes) return false;
  if (static_cast<int>(lanes_.size()) < count) {
    for (Group& lane : options_.make_lanes(count - static_cast<int>(lanes_.size()))) lanes_.push_back(std::move(lane));
  }
  return static_cast<int>(lanes_.size()) >= count;
}

std::vector<double> GradientHookState::agree_max(std::vector<double> values, c10::Device device) {
  if (group_->getSize() == 1) return values;
  const TraceRange range("agree on a plan");
  std::vector<at::Tensor> tensors{at::tensor(values, at::kDouble).to(device)};
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  group_->allreduce(tensors, options)->wait();
  const at::Tensor agreed = tensors.front().cpu();
  return {agreed.data_ptr<double>(), agreed.data_ptr<double>() + agreed.numel()};
}

// A bucket sent in FP32: for the scale of narrow steps to come, and for those who look for inf and NaN.
void GradientHookState::note_fp32(const at::Tensor& buffer) {
  if (!options_.sum_squares) uncounted_.emplace_back(buffer.getIntrusivePtr());
  if (counters_.follows_scale() && (controller_ != nullptr ? controller_->settling() : !counters_.scale_known())) counters_.note_fp32(buffer);
}

at::Tensor GradientHookState::residual_for(const BucketShape& shape, const Transfer& transfer, c10::Device device) {
  const int64_t begin = residual_begin_;
  residual_begin_ += shape.numel;
  if (!on_plan_ || transfer.wire == Wire::fp32 || !options_.feedback.value_or(transfer.wire == Wire::int8)) return {};
  int64_t total = 0;
  for (const BucketShape& planned : planned_) total += planned.narrowable ? planned.numel : 0;
  if (!residuals_.defined() || residuals_.numel() != total || residuals_.device() != device) {
    residuals_ = at::zeros({total}, at::TensorOptions().dtype(at::kFloat).device(device));
    if (!loaded_feedback_.empty() && loaded_feedback_.front().numel() == total) {
      residuals_.copy_(loaded_feedback_.front());
      std::vector<at::Tensor>& errors = carrier(device).owner_errors();
      errors.assign(loaded_feedback_.begin() + 1, loaded_feedback_.end());
      for (at::Tensor& error : errors) error = error.to(device);
      loaded_feedback_.clear();
    }
  }
  return residuals_.narrow(0, begin, shape.numel);
}

HookTotals GradientHookState::totals() {
  const std::lock_guard<std::mutex> lock(mutex_);
  counters_.finish_last_step();
  HookTotals now = totals_;
  now.nonfinite_steps += counters_.nonfinite_steps();
  now.saturated_steps += counters_.saturated_steps();
  return now;
}

int64_t GradientHookState::steps() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return totals_.steps;
}

HookGlance GradientHookState::glance() {
  const std::lock_guard<std::mutex> lock(mutex_);
  HookGlance glance{totals_, {}, std::nullopt, last_timed_step_};
  if (last_stamps_ != nullptr && last_stamps_->next_begin.passed()) glance.times = times_of(*last_stamps_);
  const std::optional<double> fixed_scale = options_.dynamic_scale ? std::nullopt : std::optional(options_.scale);
  glance.counters = counters_.glance(totals_.nonfinite_steps, totals_.saturated_steps, fixed_scale);
  return glance;
}

double GradientHookState::wire_scale() {
  const std::lock_guard<std::mutex> lock(mutex_);
  counters_.finish_last_step();
  return options_.dynamic_scale ? counters_.scale() : options_.scale;
}

std::optional<StepTimes> GradientHookState::times() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (last_stamps_ == nullptr) return std::nullopt;
  return times_of(*last_stamps_);
}

HookMemory GradientHookState::memory() {
  HookMemory memory;
  memory.totals = totals();
  const double scale = wire_scale();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (counters_.scale_known()) memory.scale = scale;
  if (controller_ != nullptr && controller_->decided()) memory.plan = controller_->plan(), memory.buckets = controller_->buckets();
  if (residuals_.defined()) {
    memory.feedback.push_back(residuals_.clone());
    for (const at::Tensor& error : carrier_->owner_errors()) memory.feedback.push_back(error.defined() ? error.clone() : at::empty({0}));
  }
  return memory;
}

void GradientHookState::load(HookMemory memory) {
  const std::lock_guard<std::mutex> lock(mutex_);
  totals_ = memory.totals;
  counters_.load(totals_.steps, memory.scale);
  residuals_ = at::Tensor();
  loaded_feedback_ = std::move(memory.feedback);
  if (controller_ != nullptr && !memory.plan.empty()) controller_->adopt(std::move(memory.plan), std::move(memory.buckets));
}

std::vector<at::Tensor> GradientHookState::last_nonfinite() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counters_.last_nonfinite();
}

std::vector<at::Tensor> GradientHookState::last_sumsq() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counters_.last_sumsq();
}

std::vector<at::Tensor> GradientHookState::last_uncounted() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<at::Tensor> buffers;
  for (const auto& weak : uncounted_) {
    if (auto alive = weak.lock()) buffers.emplace_back(std::move(alive));
  }
  return buffers;
}

Carrier& GradientHookState::carrier(c10::Device device) {
  if (carrier_ == nullptr) {
    const bool is_gloo = device.is_cpu() && group_->getBackend(c10::kCPU)->getBackendName() == "gloo";
    if (is_gloo && options_.sum_in_fp32.value_or(true)) {
      carrier_ = std::make_unique<GlooCarrier>(lanes_);
    } else {
      carrier_ = std::make_unique<CollectiveCarrier>(lanes_, options_.sum_in_fp32.value_or(false));
    }
  }
  return *carrier_;
}

}  // namespace gpualloc
