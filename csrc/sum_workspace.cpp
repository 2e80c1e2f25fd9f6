#include "sum_workspace.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/convert.h"

namespace gpualloc {
namespace {

// Made at the first call on a stream and kept: kernels on one stream run in turn. A larger buffer doubles it. Nothing is ever
// freed: a captured graph may still use the smaller scratch, and at exit the CUDA driver may be gone before a static
// destructor runs.
struct Workspace {
  std::vector<at::Tensor> memory;  // the last one is in use
  int64_t chunks = 0;              // that it is sized for
};

}  // namespace

void* sum_workspace(c10::Stream stream, int64_t chunks) {
  static std::mutex mutex;
  static auto* const workspaces = new std::map<std::pair<c10::DeviceIndex, c10::StreamId>, Workspace>;
  const std::lock_guard<std::mutex> lock(mutex);
  Workspace& workspace = (*workspaces)[{stream.device_index(), stream.id()}];
  if (workspace.chunks < chunks) {
    workspace.chunks = std::max(chunks, 2 * workspace.chunks);
    const auto bytes = at::TensorOptions().dtype(at::kByte).device(stream.device());
    workspace.memory.push_back(at::zeros({cuda::workspace_bytes(workspace.chunks)}, bytes));
  }
  return workspace.memory.back().data_ptr();
}

}  // namespace gpualloc
