// Device memory for tests.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace gpualloc::test {

inline void cuda_check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Device memory of `bytes`, poisoned.
struct Buffer {
  explicit Buffer(size_t bytes) : bytes(bytes) {
    cuda_check(cudaMalloc(&data, bytes), "cudaMalloc");
    cuda_check(cudaMemset(data, 0x5a, bytes), "cudaMemset");
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void upload(const void* from, size_t count) { cuda_check(cudaMemcpy(data, from, count, cudaMemcpyHostToDevice), "upload"); }
  std::vector<char> download() const {
    std::vector<char> host(bytes);
    cuda_check(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost), "download");
    return host;
  }
  void* data = nullptr;
  size_t bytes;
};

}  // namespace gpualloc::test
