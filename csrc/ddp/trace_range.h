// A named range in the traces of torch.profiler, from here to the end of the scope. Costs nanoseconds where nobody profiles.
#pragma once

#include <ATen/record_function.h>
#include <c10/util/StringUtil.h>

#include <optional>
#include <utility>

namespace gpualloc {

// For the thread of the backward pass, which torch.profiler listens to, and none of the backend's or ours.
class TraceRange {
 public:
  template <class... Parts>
  explicit TraceRange(const Parts&... name) {
    std::optional<at::StepCallbacks> listeners = at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE);
    if (!listeners.has_value()) return;
    record_.emplace(std::move(*listeners));
    record_->before(c10::str("gpualloc::", name...));
  }
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;

 private:
  std::optional<at::RecordFunction> record_;
};

}  // namespace gpualloc
