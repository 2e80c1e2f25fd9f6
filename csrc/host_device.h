// Marks functions that the CPU code and the CUDA kernels share.
#pragma once

#ifdef __CUDACC__
#define GPUALLOC_HOST_DEVICE __host__ __device__
#else
#define GPUALLOC_HOST_DEVICE
#endif
