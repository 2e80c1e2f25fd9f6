// A stream of a virtual group on a GPU, which modelled transfers hold one after the other.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include "rehearsal/host_links.h"

namespace gpualloc::rehearsal {

class DeviceLane {
 public:
  // Throws c10::Error where this build has no CUDA half.
  explicit DeviceLane(c10::Device device);

  c10::Stream stream() const { return stream_; }
  // Both on stream(), whose device is current: the transfer begins; what follows on the stream waits until it is through.
  void mark_start();
  void hold(const Traffic& traffic);

 private:
  c10::Stream stream_;
  at::Tensor start_;  // [1] int64, nanoseconds of the GPU's timer
  at::Tensor links_;  // [kNumLinks, 2] int32, of all lanes of the device
};

}  // namespace gpualloc::rehearsal
