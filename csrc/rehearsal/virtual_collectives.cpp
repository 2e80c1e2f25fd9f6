// What each collective of a virtual group leaves in the caller's tensors, and which bytes it moves.
#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

#include "rehearsal/virtual_group.h"
#include "rehearsal/virtual_work.h"

namespace gpualloc::rehearsal {
namespace {

// tensor = reduction over `size` tensors that are equal to it.
void reduce_equals(at::Tensor tensor, const c10d::ReduceOp& op, int size) {
  switch (op.op_) {
    case c10d::ReduceOp::SUM:
      if (size > 1 && tensor.scalar_type() != at::kBool) tensor.mul_(size);
      break;
    case c10d::ReduceOp::PRODUCT:
      if (size > 1) tensor.pow_(size);
      break;
    case c10d::ReduceOp::BXOR:
      if (size % 2 == 0) tensor.zero_();
      break;
    case c10d::ReduceOp::PREMUL_SUM: {
      const auto* const factors = static_cast<const c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
      if (factors->tensor_factor.defined()) {
        tensor.mul_(factors->tensor_factor * size);
      } else {
        tensor.mul_(factors->double_factor * size);
      }
      break;
    }
    default:  // AVG, MIN, MAX, BAND, BOR
      break;
  }
}

// output [size * n] = input [n], `size` times; input may be the part of output that is this rank's.
void repeat(const at::Tensor& output, const at::Tensor& input, int rank, int size) {
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const at::Tensor rows = output.view({size, numel}), row = input.view({1, numel});
  const bool in_place = rows.select(0, rank).data_ptr() == input.data_ptr();
  if (!in_place) {
    rows.copy_(row.expand({size, numel}));
    return;
  }
  if (rank > 0) rows.narrow(0, 0, rank).copy_(row.expand({rank, numel}));
  if (rank + 1 < size) rows.narrow(0, rank + 1, size - rank - 1).copy_(row.expand({size - rank - 1, numel}));
}

}  // namespace

VirtualGroup::Work VirtualGroup::broadcast(Tensors& tensors, const c10d::BroadcastOptions&) {
  return run(collective(c10d::OpType::BROADCAST, "broadcast", tensors, bytes_of(single(tensors, "broadcast"))));
}

VirtualGroup::Work VirtualGroup::allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) {
  Operation operation = collective(c10d::OpType::ALLREDUCE, "all_reduce", tensors, bytes_of(single(tensors, "all_reduce")));
  operation.move = [tensor = tensors.front(), op = options.reduceOp, size = size_] { reduce_equals(tensor, op, size); };
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& options) { return allreduce(tensors, options); }

VirtualGroup::Work VirtualGroup::allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) {
  TORCH_CHECK_VALUE(!tensors.empty(), "all_reduce_coalesced: expected tensors, got none");
  Operation operation = collective(c10d::OpType::ALLREDUCE_COALESCED, "all_reduce", tensors, bytes_of(tensors));
  operation.move = [tensors, op = options.reduceOp, size = size_] {
    for (const at::Tensor& tensor : tensors) reduce_equals(tensor, op, size);
  };
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::reduce(Tensors& tensors, const c10d::ReduceOptions& options) {
  Operation operation = collective(c10d::OpType::REDUCE, "reduce", tensors, bytes_of(single(tensors, "reduce")));
  if (options.rootRank == rank_) {
    operation.move = [tensor = tensors.front(), op = options.reduceOp, size = size_] { reduce_equals(tensor, op, size); };
  }
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions&) {
  const at::Tensor input = single(inputs, "all_gather");
  TORCH_CHECK_VALUE(outputs.size() == 1 && outputs.front().size() == static_cast<size_t>(size_), "all_gather: expected ", size_,
                    " outputs, got ", outputs.empty() ? 0 : outputs.front().size());
  Tensors touched = outputs.front();
  Operation operation = collective(c10d::OpType::ALLGATHER, "all_gather", touched, bytes_of(touched));
  operation.tensors.push_back(input);
  operation.move = [output = outputs.front(), input] {
    for (const at::Tensor& part : output) part.copy_(input.view_as(part));
  };
  return run(std::move(operation));
}

VirtualGroup::Operation VirtualGroup::gathered(c10d::OpType type, at::Tensor output, at::Tensor input) const {
  TORCH_CHECK_VALUE(output.numel() == size_ * input.numel(), "all_gather_into_tensor: expected an output of ", size_, " x ", input.numel(),
                    " elements, got ", output.numel());
  Operation operation = collective(type, "all_gather", {output}, bytes_of(output));
  operation.tensors.push_back(input);
  operation.move = [output, input, rank = rank_, size = size_] { repeat(output, input, rank, size); };
  return operation;
}

VirtualGroup::Work VirtualGroup::_allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions&) {
  return run(gathered(c10d::OpType::_ALLGATHER_BASE, output, input));
}

VirtualGroup::Work VirtualGroup::allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions&) {
  // outputs[rank][i] is of inputs[i]
  TORCH_CHECK_VALUE(!inputs.empty(), "all_gather_coalesced: expected tensors, got none");
  TORCH_CHECK_VALUE(outputs.size() == static_cast<size_t>(size_), "all_gather_coalesced: expected outputs of ", size_, " ranks, got ", outputs.size());
  Tensors touched;
  for (const Tensors& row : outputs) {
    TORCH_CHECK_VALUE(row.size() == inputs.size(), "all_gather_coalesced: expected ", inputs.size(), " outputs a rank, got ", row.size());
    touched.insert(touched.end(), row.begin(), row.end());
  }
  Operation operation = collective(c10d::OpType::ALLGATHER_COALESCED, "all_gather", touched, bytes_of(touched));
  operation.tensors.insert(operation.tensors.end(), inputs.begin(), inputs.end());
  operation.move = [outputs, inputs] {
    for (const Tensors& row : outputs) {
      for (size_t i = 0; i < row.size(); ++i) row[i].copy_(inputs[i].view_as(row[i]));
    }
  };
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions&) {
  TORCH_CHECK_VALUE(!inputs.empty() && outputs.size() == inputs.size(), "all_gather_into_tensor_coalesced: expected as many outputs as the ",
                    inputs.size(), " inputs, got ", outputs.size());
  std::vector<Operation> parts;
  for (size_t i = 0; i < inputs.size(); ++i) parts.push_back(gathered(c10d::OpType::COALESCED, outputs[i], inputs[i]));
  Operation operation = merged(std::move(parts), c10d::OpType::COALESCED);
  operation.traffic = traffic_of("all_gather", outputs.front(), operation.bytes);
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) {
  const at::Tensor input = single(inputs, "gather");
  Operation operation = collective(c10d::OpType::GATHER, "gather", inputs, size_ * bytes_of(input));
  if (options.rootRank == rank_) {
    TORCH_CHECK_VALUE(outputs.size() == 1 && outputs.front().size() == static_cast<size_t>(size_), "gather: expected ", size_, " outputs");
    operation.results = outputs.front();
    operation.tensors.insert(operation.tensors.end(), outputs.front().begin(), outputs.front().end());
    operation.move = [output = outputs.front(), input] {
      for (const at::Tensor& part : output) part.copy_(input.view_as(part));
    };
  }
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) {
  const at::Tensor output = single(outputs, "scatter");
  Operation operation = collective(c10d::OpType::SCATTER, "scatter", outputs, size_ * bytes_of(output));
  if (options.rootRank == rank_) {
    TORCH_CHECK_VALUE(inputs.size() == 1 && inputs.front().size() == static_cast<size_t>(size_), "scatter: expected ", size_, " inputs");
    const at::Tensor input = inputs.front()[static_cast<size_t>(rank_)];
    operation.tensors.push_back(input);
    operation.move = [output, input] { output.copy_(input.view_as(output)); };
  }
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ReduceScatterOptions& options) {
  const at::Tensor output = single(outputs, "reduce_scatter");
  TORCH_CHECK_VALUE(inputs.size() == 1 && inputs.front().size() == static_cast<size_t>(size_), "reduce_scatter: expected ", size_, " inputs");
  const at::Tensor input = inputs.front()[static_cast<size_t>(rank_)];
  Operation operation = collective(c10d::OpType::REDUCE_SCATTER, "reduce_scatter", outputs, bytes_of(inputs.front()));
  operation.tensors.insert(operation.tensors.end(), inputs.front().begin(), inputs.front().end());
  operation.move = [output, input, op = options.reduceOp, size = size_] {
    output.copy_(input.view_as(output));
    reduce_equals(output, op, size);
  };
  return run(std::move(operation));
}

VirtualGroup::Operation VirtualGroup::scattered(c10d::OpType type, at::Tensor output, at::Tensor input, const c10d::ReduceOp& op) const {
  TORCH_CHECK_VALUE(input.numel() == size_ * output.numel(), "reduce_scatter_tensor: expected an input of ", size_, " x ", output.numel(),
                    " elements, got ", input.numel());
  Operation operation = collective(type, "reduce_scatter", {output}, bytes_of(input));
  operation.tensors.push_back(input);
  operation.move = [output, input, op, rank = rank_, size = size_] {
    const at::Tensor part = input.view(-1).narrow(0, rank * output.numel(), output.numel());
    if (part.data_ptr() != output.data_ptr()) output.view(-1).copy_(part);
    reduce_equals(output, op, size);
  };
  return operation;
}

VirtualGroup::Work VirtualGroup::_reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) {
  return run(scattered(c10d::OpType::_REDUCE_SCATTER_BASE, output, input, options.reduceOp));
}

VirtualGroup::Work VirtualGroup::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& options) {
  TORCH_CHECK_VALUE(!inputs.empty() && outputs.size() == inputs.size(), "reduce_scatter_tensor_coalesced: expected as many outputs as the ",
                    inputs.size(), " inputs, got ", outputs.size());
  std::vector<Operation> parts;
  for (size_t i = 0; i < inputs.size(); ++i) parts.push_back(scattered(c10d::OpType::COALESCED, outputs[i], inputs[i], options.reduceOp));
  Operation operation = merged(std::move(parts), c10d::OpType::COALESCED);
  operation.traffic = traffic_of("reduce_scatter", inputs.front(), operation.bytes);
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                                               std::vector<int64_t>& input_splits, const c10d::AllToAllOptions&) {
  const auto splits_of = [this](const at::Tensor& tensor, const std::vector<int64_t>& splits, const char* name) {
    if (!splits.empty()) {
      TORCH_CHECK_VALUE(splits.size() == static_cast<size_t>(size_), "all_to_all_single: expected ", size_, " ", name, " splits, got ", splits.size());
      return splits;
    }
    TORCH_CHECK_VALUE(tensor.dim() > 0 && tensor.size(0) % size_ == 0, "all_to_all_single: ", name, " of shape ", tensor.sizes(),
                      " cannot be cut into ", size_, " equal parts");
    return std::vector<int64_t>(static_cast<size_t>(size_), tensor.size(0) / size_);
  };
  const Tensors from = input.split_with_sizes(splits_of(input, input_splits, "input"));
  const Tensors to = output.split_with_sizes(splits_of(output, output_splits, "output"));
  Operation operation = collective(c10d::OpType::ALLTOALL_BASE, "all_to_all", {output}, std::max(bytes_of(output), bytes_of(input)));
  operation.tensors.push_back(input);
  // Each peer has what this rank has for itself; where the splits say that it sends more or less, as much as there is.
  operation.move = [to, own = from[static_cast<size_t>(rank_)]] {
    for (const at::Tensor& part : to) {
      const int64_t rows = std::min(part.size(0), own.size(0));
      part.narrow(0, 0, rows).copy_(own.narrow(0, 0, rows));
      part.narrow(0, rows, part.size(0) - rows).zero_();
    }
  };
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions&) {
  TORCH_CHECK_VALUE(outputs.size() == static_cast<size_t>(size_) && inputs.size() == outputs.size(), "all_to_all: expected ", size_,
                    " inputs and outputs, got ", inputs.size(), " and ", outputs.size());
  Operation operation = collective(c10d::OpType::ALLTOALL, "all_to_all", outputs, std::max(bytes_of(outputs), bytes_of(inputs)));
  operation.tensors.insert(operation.tensors.end(), inputs.begin(), inputs.end());
  operation.move = [outputs, own = inputs[static_cast<size_t>(rank_)]] {
    for (const at::Tensor& part : outputs) {
      const int64_t numel = std::min(part.numel(), own.numel());
      part.view(-1).narrow(0, 0, numel).copy_(own.view(-1).narrow(0, 0, numel));
      part.view(-1).narrow(0, numel, part.numel() - numel).zero_();
    }
  };
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::barrier(const c10d::BarrierOptions& options) {
  c10::Device device = at::kCPU;
  if (options.device.has_value()) {
    device = *options.device;
  } else if (options_.stands_for == "nccl") {
    device = getBoundDeviceId().value_or(c10::impl::VirtualGuardImpl(at::kCUDA).getDevice());
  }
  const at::Tensor flag = at::zeros({1}, at::TensorOptions().dtype(at::kFloat).device(device));  // NCCL's barrier is an all-reduce of one
  Operation operation = collective(c10d::OpType::BARRIER, "all_reduce", {flag}, bytes_of(flag));
  operation.blocks_host = true;
  return run(std::move(operation));
}

}  // namespace gpualloc::rehearsal
