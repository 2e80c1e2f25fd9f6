// A process group of one rank whose peers do not exist: c10d's collectives with the shapes, the order and the time of a modelled link.
//
// Every collective gives what it would give if the peers held the same data: a sum is size times the tensor, a gather repeats it. A
// receive gets back what this rank last sent to that peer, where the sizes agree, else small random numbers.
//
// CUDA: an operation runs on a stream of the group's, after what the caller has queued, and holds it on the device (kernels/hold.h);
// neither the host nor other streams wait. CPU: HostLinks lets it take its time and completes its Work. Collectives of a group go in
// order, like NCCL's; on the CPU as many at a time as the profile says, which for gloo is 2.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "rehearsal/cost.h"
#include "rehearsal/host_links.h"

namespace gpualloc::rehearsal {

struct GroupOptions {
  std::string stands_for;            // "nccl" or "gloo": the name the backend answers to
  CostTables costs;
  LinkLevel link = kNodeLink;        // the one its collectives wait for
  std::vector<bool> peer_on_network; // by rank in the group
  int max_in_flight = 1;             // CPU collectives at a time
};

// What virtual groups of this process did, since it started.
struct Totals {
  int64_t operations = 0;
  int64_t bytes = 0;      // of their tensors, as nccl-tests counts them
  double modelled_s = 0;  // latencies and transfers, each alone on its link
};
Totals totals();
void add_to_totals(int64_t bytes, double seconds);  // one operation

class VirtualWork;
class DeviceLane;

class VirtualGroup final : public c10d::Backend {
 public:
  using Work = c10::intrusive_ptr<c10d::Work>;
  using Tensors = std::vector<at::Tensor>;

  VirtualGroup(int rank, int size, GroupOptions options);
  ~VirtualGroup() override;

  const std::string getBackendName() const override { return options_.stands_for; }
  bool supportsCoalescing() const override { return options_.stands_for == "nccl"; }
  void startCoalescing() override;
  Work endCoalescing() override;
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }

  Work broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override;
  Work allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  Work allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  Work allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override;
  Work reduce(Tensors& tensors, const c10d::ReduceOptions& options) override;
  Work allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  Work _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override;
  Work allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  Work allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  Work gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override;
  Work scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) override;
  Work reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ReduceScatterOptions& options) override;
  Work _reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override;
  Work reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& options) override;
  Work alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits, std::vector<int64_t>& input_splits,
                     const c10d::AllToAllOptions& options) override;
  Work alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override;
  Work send(Tensors& tensors, int peer, int tag) override;
  Work recv(Tensors& tensors, int peer, int tag) override;
  Work recvAnysource(Tensors& tensors, int tag) override;
  Work barrier(const c10d::BarrierOptions& options) override;

 private:
  // One call, or several that were coalesced.
  struct Operation {
    c10d::OpType type = c10d::OpType::UNKNOWN;
    Tensors tensors;              // all that it reads or writes
    Tensors results;
    std::function<void()> move;   // what the peers' data does to them
    Traffic traffic;
    int64_t bytes = 0;
    int peer = -1;                // of a send or a receive
    bool blocks_host = false;     // on CUDA, in wait(): a barrier
  };
  struct Mailbox;  // sends and receives of one peer and tag

  Traffic traffic_of(const std::string& operation, const at::Tensor& like, int64_t bytes) const;
  Operation collective(c10d::OpType type, const std::string& name, Tensors tensors, int64_t bytes) const;
  Operation gathered(c10d::OpType type, at::Tensor output, at::Tensor input) const;
  Operation scattered(c10d::OpType type, at::Tensor output, at::Tensor input, const c10d::ReduceOp& op) const;
  Operation message(c10d::OpType type, at::Tensor tensor, int peer) const;
  static Operation merged(std::vector<Operation> operations, c10d::OpType type);

  Work run(Operation operation);
  Work run_on_device(Operation operation, c10::Device device);
  Work run_on_host(Operation operation, std::shared_ptr<TransferQueue> queue);
  void check_peer(int peer, const char* name) const;
  at::Tensor last_sent(int peer) const;

  const GroupOptions options_;
  const std::shared_ptr<TransferQueue> queue_;
  uint64_t sequence_ = 0;
  std::optional<std::vector<Operation>> coalesced_;  // between startCoalescing and endCoalescing
  std::map<std::pair<c10::DeviceIndex, int>, std::unique_ptr<DeviceLane>> lanes_;  // by device and peer, -1 for collectives
  mutable std::mutex mutex_;  // of what follows
  std::map<std::pair<int, int>, std::shared_ptr<Mailbox>> mailboxes_;  // by peer and tag
  std::map<int, at::Tensor> sent_;                                     // last one by peer
};

}  // namespace gpualloc::rehearsal
