// Carries shipments between CPU ranks over gloo by point-to-point messages, in a thread of its own: 16 or 8 bits travel, sums are
// in FP32. gloo's own all-reduce sums halves element by element, slower than it moves FP32.
//
// A shipment goes in chunks, and every chunk through three stages, several chunks at a time:
//
//   start    narrow the chunk; send every peer its shard of it
//   reduce   sum the shards that came, in the order of the ranks, in FP32; narrow once; send the result to every peer
//   finish   widen the results into the buffers
//
// Receives are posted before sends: with two ranks gloo otherwise uses one direction at a time. FP32 shipments are left to gloo.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "ddp/collective_carrier.h"
#include "ddp/shipment.h"

namespace gpualloc {

class GlooCarrier final : public Carrier {
 public:
  explicit GlooCarrier(const std::vector<Group>& lanes);  // uses the first one
  ~GlooCarrier() override;  // waits for what is on its way

  void carry(Shipment shipment) override;
  c10::intrusive_ptr<c10::ivalue::Future> agree_max(const at::Tensor& source, const at::Tensor& target) override;

 private:
  using Work = c10::intrusive_ptr<c10d::Work>;

  // Memory of one chunk in flight, used again by later ones.
  struct Memory {
    at::Tensor sent, received, gathered;  // [world_size * shard bytes] uint8
  };

  // What agree_max() was asked for: a shipment of no elements, whose `received` has a row from every rank.
  struct Agreement {
    at::Tensor source, target;
    c10::intrusive_ptr<c10::ivalue::Future> future;
  };

  struct Chunk {
    std::shared_ptr<Shipment> shipment;   // null for an agreement
    std::optional<Agreement> agreement;
    int64_t begin, numel;   // of the shipment's elements
    int64_t shard;          // elements
    int64_t shard_bytes;
    int64_t serial;         // of all chunks: alike on every rank, which cuts the same shipments in the same order
    size_t number;          // in its step, for the owner's error
    bool is_last;           // of the shipment
    Memory memory;
    std::vector<Work> sends, shards, results;
  };

  struct Order {
    Shipment shipment;
    std::optional<Agreement> agreement;
  };

  void run();
  void process();
  bool may_start();
  void start();
  void start_agreement(Agreement agreement);
  void reduce();
  void finish();
  void put(Order order);
  void fail_all(const std::exception_ptr& error);
  int64_t chunk_numel(Wire wire) const;
  std::vector<at::Tensor> slices(const std::vector<at::Tensor>& tensors, const Chunk& chunk) const;
  at::Tensor shard_of(const at::Tensor& memory, const Chunk& chunk, int rank) const;
  bool has_data(const Chunk& chunk, int rank) const { return rank * chunk.shard < chunk.numel; }
  int next_peer(int step) const;
  int tag(const Chunk& chunk, int stage) const;

  const c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const int rank_, world_size_;
  const int number_;  // among the carriers of this group
  CollectiveCarrier fp32_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Order> waiting_;
  bool ends_ = false;
  std::exception_ptr failed_;

  // Of the thread alone.
  std::shared_ptr<Shipment> current_;  // being cut into chunks
  int64_t next_begin_ = 0;
  size_t chunk_number_ = 0;
  int64_t chunk_serial_ = 0;
  std::deque<Chunk> started_, reduced_;
  std::vector<Memory> free_;

  std::thread thread_;  // last: it starts when all else is there
};

}  // namespace gpualloc
