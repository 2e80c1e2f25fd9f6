// Which buckets travel together, and as what: the plan of one step, and what a link would make of it. No torch.
//
//   start(k)  = max(ready(last bucket of k), end(k - 1))        transfers use the link one after the other
//   end(k)    = start(k) + link.latency_s + bytes(k) / link.bytes_per_s
//   exposed   = end(last transfer) - ready(last bucket)
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace gpualloc {

// How gradients are written on the wire.
enum class Wire : uint8_t { fp32, fp16, bf16, int8 };
constexpr int kNumWires = 4;

const char* name_of(Wire wire);
Wire parse_wire(const std::string& name);  // throws std::invalid_argument
double bytes_per_element(Wire wire);       // int8: with its block scales

// Buckets [first, last] as one collective, or one bucket as `slices` of them. Slices take turns on `lanes` communicators, and so do
// transfers in one piece.
struct Transfer {
  int first;
  int last;
  Wire wire;
  int slices = 1;
  int lanes = 1;
  bool operator==(const Transfer& other) const {
    return first == other.first && last == other.last && wire == other.wire && slices == other.slices && lanes == other.lanes;
  }
  // One bucket as it is, in one piece, on the first communicator: what DDP does by itself.
  bool is_plain() const { return first == last && wire == Wire::fp32 && slices == 1 && lanes == 1; }
};

// In the order of the buckets, without gaps.
using Plan = std::vector<Transfer>;

// One bucket, as the reducer hands it over.
struct BucketShape {
  int64_t numel;
  bool narrowable;  // FP32 and dense; others travel alone, in their own type
  int device;
  bool operator==(const BucketShape& other) const {
    return numel == other.numel && narrowable == other.narrowable && device == other.device;
  }
};
using Buckets = std::vector<BucketShape>;

// Time of one collective: latency_s + bytes / bytes_per_s.
struct LinkModel {
  double latency_s = 0;
  double bytes_per_s = 0;
};

struct LinkSample {
  double bytes;
  double seconds;
};

// Least squares, neither term below zero. At least one sample.
LinkModel fit_link(const std::vector<LinkSample>& samples);

// What the agreed measurements say.
struct Figures {
  std::vector<double> ready_s;               // of each bucket, since the first one
  std::array<LinkModel, kNumWires> links{};  // of the wires that may be used; pack and unpack included
};

// Seconds from the first bucket's readiness to the end of the last transfer.
double finish_s(const Plan& plan, const Buckets& buckets, const Figures& figures);

// Every bucket alone, as `wire` where it is narrowable.
Plan plain_plan(const Buckets& buckets, Wire wire);

// The same, but neighbours of at most `max_bytes` together travel as one: each is nothing but latency.
Plan joined_plan(const Buckets& buckets, Wire wire, int64_t max_bytes);

// The plan that ends first, of all ways to merge neighbours and all `wires`; then FP32 wherever that ends no more than `tolerance`
// later: a wider wire is free where it is hidden. Quadratic in the number of buckets.
Plan best_plan(const Buckets& buckets, const Figures& figures, const std::vector<Wire>& wires, double tolerance);

// The same on `lanes` communicators: every single bucket of `min_slice_bytes` or more for each of them is cut into as many slices.
Plan on_lanes(Plan plan, const Buckets& buckets, int lanes, int64_t min_slice_bytes);

// The last transfer cut into slices, where it is one large bucket: its cast, transfer and write-back then overlap.
Plan sliced_plan(Plan plan, const Buckets& buckets, int64_t min_slice_bytes);

}  // namespace gpualloc
