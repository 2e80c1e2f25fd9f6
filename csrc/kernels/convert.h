// Launchers of the CUDA pack and unpack kernels: raw pointers, sizes, a stream. No torch.
#pragma once

#include <cstdint>

#include "segment.h"

namespace gpualloc::cuda {

// Most segments one launch takes: their table travels in the kernel's parameters (32,764 bytes since CUDA 12.1), so that
// a call neither allocates nor copies and may be captured in a graph. Longer lists are launched in turns.
constexpr int kMaxSegments = 1408;

// Device scratch for the sum of squares: one FP64 partial sum a block, then the ticket that finds the last block.
constexpr int kMaxBlocks = 4096;
constexpr int64_t kWorkspaceBytes = kMaxBlocks * 8 + 8;  // zeroed once by the caller, left zeroed by every launch

struct Counters {
  int64_t* nonfinite = nullptr;  // device; the number of non-finite results is added to it; null: not counted
  double* sumsq = nullptr;       // device; the sum of squared results is added to it; null: not summed
  void* workspace = nullptr;     // device, kWorkspaceBytes; needed with sumsq, one per stream
};

// flat[begin + j] = narrow(float(segment[j]) * scale) for every segment. Segments must follow each other without gaps.
// Asynchronous on `stream` of the current device. Returns a cudaError_t, 0 for success.
int launch_pack(const Segment* segments, int num_segments, void* flat, Dtype wire_dtype, float scale, Counters counters, void* stream);

// segment[j] = convert(float(flat[begin + j]) * scale). The rest as launch_pack.
int launch_unpack(const Segment* segments, int num_segments, const void* flat, Dtype wire_dtype, float scale, Counters counters,
                  void* stream);

// The text of an error code that a launcher returned.
const char* error_text(int error);

}  // namespace gpualloc::cuda
