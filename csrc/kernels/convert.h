// Launchers of the CUDA pack and unpack kernels: raw pointers, sizes, a stream. No torch.
#pragma once

#include <cstdint>

#include "segment.h"
#include "wire_scale.h"

namespace gpualloc::cuda {

// Most segments one launch takes: their table travels in the kernel's parameters (32,764 bytes since CUDA 12.1), so that
// a call neither allocates nor copies and may be captured in a graph. Longer lists are launched in turns.
constexpr int kMaxSegments = 1408;

// Elements of one segment that a block converts.
constexpr int kChunk = 2048;

// Device scratch for the sum of squares, one per stream: a ticket (16 bytes) and kSumBlocks FP64 sums, then an FP32 sum of every warp.
// Its first 8 bytes must be zero before the first launch; every launch leaves them zero.
constexpr int kWarpsPerChunk = 8;
constexpr int kSumBlocks = 256;
int64_t chunks_for(const Segment* segments, int num_segments);
constexpr int64_t workspace_bytes(int64_t chunks) { return 16 + kSumBlocks * 8 + chunks * kWarpsPerChunk * 4; }

struct Counters {
  int64_t* nonfinite = nullptr;  // device; the number of non-finite results is added to it; null: not counted
  double* sumsq = nullptr;       // device; the sum of squared results is added to it; null: not summed
  void* workspace = nullptr;     // device, workspace_bytes(chunks_for(segments)) or more; needed with sumsq
  WireState* wire = nullptr;     // device; pack and unpack then do as wire_scale.h says
};

// flat[begin + j] = narrow(float(segment[j]) * scale) for every segment. Segments must follow each other without gaps.
// Asynchronous on `stream` of the current device. Returns a cudaError_t, 0 for success.
int launch_pack(const Segment* segments, int num_segments, void* flat, Dtype wire_dtype, float scale, Counters counters, void* stream);

// segment[j] = convert(float(flat[begin + j]) * scale). The rest as launch_pack.
int launch_unpack(const Segment* segments, int num_segments, const void* flat, Dtype wire_dtype, float scale, Counters counters,
                  void* stream);

// *state = next_state(*state, agreed[0], agreed[1] != 0, *nonfinite != 0); `agreed` may be the state's own absmax and saturated.
int launch_update(WireState* state, const float* agreed, const int64_t* nonfinite, void* stream);

// The text of an error code that a launcher returned.
const char* error_text(int error);

}  // namespace gpualloc::cuda
