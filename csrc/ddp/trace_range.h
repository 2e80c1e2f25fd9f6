// A named range in the traces of torch.profiler, from here to the end of the scope. Costs nanoseconds where nobody profiles.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <ATen/record_function.h>
#include <c10/util/StringUtil.h>

#include <memory>
#include <optional>
#include <utility>

namespace gpualloc {

// torch.profiler listens to threads: one of ours is heard only as the thread that gave it the work. Null where nobody profiles.
using Profiled = std::shared_ptr<const at::ThreadLocalState>;

inline Profiled profiled() { return at::hasThreadLocalCallbacks() ? std::make_shared<const at::ThreadLocalState>() : nullptr; }

class TraceRange {
 public:
  // On the profiled thread itself.
  template <class... Parts>
  explicit TraceRange(const Parts&... name) {
    begin(name...);
  }

  // On another thread. What torch does inside the range stays out of the trace.
  template <class... Parts>
  explicit TraceRange(const Profiled& of, const Parts&... name) : of_(of) {
    const auto heard = hear();
    begin(name...);
  }

  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;

  ~TraceRange() {
    if (!record_.has_value()) return;
    const auto heard = hear();
    record_.reset();
  }

 private:
  std::optional<at::ThreadLocalStateGuard> hear() const {
    return of_ == nullptr ? std::nullopt : std::optional<at::ThreadLocalStateGuard>(std::in_place, *of_);
  }

  template <class... Parts>
  void begin(const Parts&... name) {
    std::optional<at::StepCallbacks> listeners = at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE);
    if (!listeners.has_value()) return;
    record_.emplace(std::move(*listeners));
    record_->before(c10::str("gpualloc::", name...));
  }

  Profiled of_;
  std::optional<at::RecordFunction> record_;
};

}  // namespace gpualloc
