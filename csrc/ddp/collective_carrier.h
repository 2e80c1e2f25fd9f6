// Carries shipments with the collectives of the process group: any backend, CPU and CUDA.
//
//   fp32              all-reduce of the buffers themselves
//   fp16, bf16        narrow, all-reduce in 16 bits, widen
//   the same, summed in FP32, and int8 (CUDA only):
//                     narrow, all-to-all of shards, sum in FP32 and narrow once, all-gather, widen
//
// A shipment may be cut into slices, which travel one after the other or, on further process groups of the same ranks (lanes), side by
// side: over TCP one communicator keeps only a few cores and sockets busy.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <optional>
#include <vector>

#include "ddp/shipment.h"

namespace gpualloc {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

// Memory of one step's wires, one piece for all of them, kept from step to step.
class Arena {
 public:
  // The next `bytes` of this step; begins at a multiple of 256 bytes.
  at::Tensor take(int64_t bytes, c10::Device device);
  void begin_step();

 private:
  at::Tensor memory_;
  int64_t used_ = 0;
  std::optional<c10::Device> last_;
};

class CollectiveCarrier final : public Carrier {
 public:
  // `lanes`: the process groups that take turns, at least one; the owner may add to them.
  CollectiveCarrier(const std::vector<Group>& lanes, bool sum_in_fp32) : lanes_(lanes), sum_in_fp32_(sum_in_fp32) {}

  void carry(Shipment shipment) override;
  c10::intrusive_ptr<c10::ivalue::Future> agree_max(const at::Tensor& source, const at::Tensor& target) override;
  void begin_step() override;

 private:
  using Future = c10::intrusive_ptr<c10::ivalue::Future>;

  // A slice of a shipment, in one piece.
  struct Slice {
    std::vector<at::Tensor> buffers, residuals;
    int number;  // in its shipment
    int lane;
    at::Tensor wire;  // uint8; undefined for FP32
    int64_t numel() const;
  };

  Slice slice_of(const Shipment& shipment, int number) const;
  Future start(const Shipment& shipment, Slice& slice);
  void make_room(const Shipment& shipment, const Slice& slice) const;
  void finish(const Shipment& shipment, const Slice& slice);
  bool exchanges(const Shipment& shipment) const;
  void exchange(const Shipment& shipment, const Slice& slice);
  void join(const Shipment& shipment);
  int64_t shard_bytes(const Shipment& shipment, const Slice& slice) const;
  c10::Stream side_stream(int lane, c10::Device device);

  const std::vector<Group>& lanes_;
  const bool sum_in_fp32_;
  Arena arena_;
  std::vector<c10::Stream> side_streams_;  // by lane where shards are exchanged
};

// Starts the average of `tensors` over the ranks.
c10::intrusive_ptr<c10d::Work> start_average(c10d::ProcessGroup& group, std::vector<at::Tensor>& tensors);

}  // namespace gpualloc
