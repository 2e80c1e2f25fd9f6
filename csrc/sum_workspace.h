// Device scratch of the kernels that sum squares.
#pragma once

#include <c10/core/Stream.h>

#include <cstdint>

namespace gpualloc {

// Scratch for `chunks` chunks (kernels/convert.h) on a CUDA stream; allocates only when a stream's first or larger sum comes.
void* sum_workspace(c10::Stream stream, int64_t chunks);

}  // namespace gpualloc
