// What a virtual group's operation is waited for with, and small things that its parts share.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace gpualloc::rehearsal {

inline int64_t bytes_of(const at::Tensor& tensor) {
  return tensor.is_sparse() ? bytes_of(tensor._values()) : static_cast<int64_t>(tensor.nbytes());
}

inline int64_t bytes_of(const std::vector<at::Tensor>& tensors) {
  int64_t sum = 0;
  for (const at::Tensor& tensor : tensors) sum += bytes_of(tensor);
  return sum;
}

inline const at::Tensor& single(const std::vector<at::Tensor>& tensors, const char* name) {
  TORCH_CHECK_VALUE(tensors.size() == 1, name, ": expected one tensor, got ", tensors.size());
  return tensors.front();
}

class VirtualWork final : public c10d::Work {
 public:
  VirtualWork(int rank, c10d::OpType type, std::vector<at::Tensor> results, std::optional<c10::Device> device)
      : Work(rank, type), results_(std::move(results)) {
    std::vector<c10::Device> devices;
    if (device.has_value()) {
      devices.push_back(*device);
      end_.emplace(device->type());
    }
    future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), std::move(devices));
  }

  ~VirtualWork() override {
    // Never waited for: its memory may be given away only when the lane has passed.
    if (lane_.has_value()) {
      for (const at::Tensor& tensor : stash_) tensor.record_stream(*lane_);
    }
  }

  bool isCompleted() override { return end_.has_value() ? end_->query() : future_->completed(); }
  bool isSuccess() const override { return !future_->hasError(); }
  std::vector<at::Tensor> result() override { return results_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  int sourceRank() const override { return source_; }

  void synchronize() override { wait(kNoTimeout); }

  bool wait(std::chrono::milliseconds) override {
    if (start_when_waited_for) start_when_waited_for();
    if (!end_.has_value()) {
      future_->wait();
      if (future_->hasError()) std::rethrow_exception(future_->exception_ptr());
      return true;
    }
    const c10::impl::VirtualGuardImpl streams(end_->device_type());
    end_->block(streams.getStream(lane_->device()));
    if (blocks_host_) end_->synchronize();
    stash_.clear();
    return true;
  }

  void complete() { future_->markCompleted(c10::IValue(results_)); }
  void fail(std::exception_ptr error) { future_->setErrorIfNeeded(std::move(error)); }

  // With `lane` as the current stream.
  void complete_on(const c10::Stream& lane, std::vector<at::Tensor> tensors, bool blocks_host) {
    lane_ = lane;
    end_->record(lane);
    complete();
    stash_ = std::move(tensors);
    blocks_host_ = blocks_host;
  }

  std::function<void()> start_when_waited_for;  // of a receive on the CPU
  int source_ = -1;

 private:
  std::vector<at::Tensor> results_, stash_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
  std::optional<c10::Event> end_;
  std::optional<c10::Stream> lane_;
  bool blocks_host_ = false;
};

}  // namespace gpualloc::rehearsal
