// Launchers of the kernels that let a stream wait for a modelled link. No torch. Asynchronous on `stream` of the current device; they
// return a cudaError_t, 0 for success.
#pragma once

#include <cstdint>

namespace gpualloc::cuda {

constexpr int kFullLink = 1024;  // a demand of 1

struct DeviceLink {  // in device memory, zero at first
  int load[2];       // demands of the transfers under way, out and in, in parts of kFullLink
};

struct Hold {
  int64_t latency_ns, transfer_ns;
  int demand;    // in parts of kFullLink
  bool out, in;  // directions it uses
};

int launch_mark_start(int64_t* start_ns, void* stream);
// Ends when the transfer that began at *start_ns is through; transfers under way at the same time share the link.
int launch_hold(const int64_t* start_ns, DeviceLink* link, const Hold& hold, void* stream);

}  // namespace gpualloc::cuda
