#include "ddp/shipment.h"

#include <ATen/ATen.h>

#include "exchange.h"

namespace gpualloc {

at::Tensor Carrier::owner_error(size_t k, int64_t numel, c10::Device device) {
  if (owner_errors_.size() <= k) owner_errors_.resize(k + 1);
  at::Tensor& error = owner_errors_[k];
  if (!error.defined() || error.numel() != numel || error.device() != device) {
    error = at::zeros({numel}, at::TensorOptions().dtype(at::kFloat).device(device));
  }
  return error;
}

void pack_all(const std::vector<at::Tensor>& buffers, const std::vector<at::Tensor>& residuals, const at::Tensor& wire, double scale,
              const std::optional<at::Tensor>& wire_state) {
  if (residuals.empty()) return pack(buffers, wire, scale, {{}, {}, wire_state});
  int64_t begin = 0;
  for (size_t k = 0; k < buffers.size(); ++k) {
    const at::Tensor &buffer = buffers[k], &residual = residuals[k], part = wire.narrow(0, begin, buffer.numel());
    begin += buffer.numel();
    if (!wire_state.has_value()) {
      pack_with_feedback(buffer, part, scale, residual);
      continue;
    }
    // The wire scale changes from step to step, so the residual is kept without it.
    residual.add_(buffer, scale);
    pack(residual, part, 1.0, {{}, {}, wire_state});
    unpack(part, buffer, 1.0, {{}, {}, wire_state});
    residual.sub_(buffer).nan_to_num_(0.0, 0.0, 0.0);
  }
}

}  // namespace gpualloc
