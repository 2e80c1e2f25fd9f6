// A point in time, of the host or of a CUDA stream, taken without waiting.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <optional>

namespace gpualloc {

class Stamp {
 public:
  Stamp() = default;  // not taken

  // Now; on CUDA when the device's current stream has come this far.
  static Stamp now(c10::Device device) {
    Stamp stamp;
    if (device.is_cpu()) {
      stamp.time_ = std::chrono::steady_clock::now();
    } else {
      stamp.event_.emplace(device.type(), c10::EventFlag::BACKEND_DEFAULT);  // with timing
      stamp.event_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    }
    return stamp;
  }

  bool taken() const { return event_.has_value() || time_.time_since_epoch().count() != 0; }

  // Whether the device has come this far.
  bool passed() const { return taken() && (!event_.has_value() || event_->query()); }

  void wait() const {
    if (event_.has_value()) event_->synchronize();
  }

  // Seconds from `begin` to this one, both passed.
  double since(const Stamp& begin) const {
    if (event_.has_value()) return begin.event_->elapsedTime(*event_) * 1e-3;
    return std::chrono::duration<double>(time_ - begin.time_).count();
  }

 private:
  std::optional<c10::Event> event_;
  std::chrono::steady_clock::time_point time_{};
};

}  // namespace gpualloc
