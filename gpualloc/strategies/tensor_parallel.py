"""Tensor parallelism of transformers: every rank has some heads of each attention, some columns of each MLP, some of the vocabulary.

torch.distributed.tensor.parallel, as in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053): a layer that splits its outputs over the
ranks, then one that splits its inputs and sums them, so that each attention and each MLP takes one all-reduce forward and one backward.
All ranks train on the same batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, loss_parallel, parallelize_module

from gpualloc.records import BenchCase
from gpualloc.strategies.wrapped import Autocast, Batch, Scale, Wrapped
from gpualloc.workloads import compute_loss

# Names of linear layers in a block, by what a rank has of them.
_OUTPUTS = ("qkv", "q_proj", "k_proj", "v_proj", "mlp_in", "gate_proj", "up_proj")
_INPUTS = ("out", "o_proj", "mlp_out", "down_proj")


def wrap(case: BenchCase, model: nn.Module, device: torch.device) -> Wrapped:
    """The model with its parameters as DTensors, the replicated ones too: optimisers take no mixture."""
    mesh = init_device_mesh(device.type, (case.world_size,), mesh_dim_names=("tensor",))
    embedding, head = model.get_submodule("token_embedding"), model.get_submodule("head")
    is_tied = head.weight is embedding.weight
    plan = _make_plan(model)
    # Every rank built the same weights, so that each takes its share of its own instead of waiting for rank 0's.
    parallelize_module(model, mesh, plan, src_data_rank=None)
    for module in model.modules():
        if any(not isinstance(parameter, DTensor) for parameter in module.parameters(recurse=False)):
            _Replicated()._apply(module, mesh)
    if is_tied:
        head.weight = embedding.weight
    model.to(device)

    def run_batch(batch: Batch, *, autocast: Autocast, scale: Scale) -> Tensor:
        with loss_parallel():  # each rank sums over its part of the vocabulary
            with autocast():
                loss = compute_loss(model, batch)
            local_loss = loss.to_local() if isinstance(loss, DTensor) else loss
            scale(local_loss).backward()  # type: ignore[no-untyped-call]
        return local_loss.detach()

    return Wrapped(model=model, no_sync=None, wire_bytes_per_step=None, run_batch=run_batch, shard=mesh.get_local_rank(), is_sharded=True)


def _make_plan(model: nn.Module) -> dict[str, ParallelStyle]:
    """Name of a module -> how it is split. The vocabulary is split too, of the embedding and of the logits."""
    plan: dict[str, ParallelStyle] = {
        "token_embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }
    for name, module in model.get_submodule("blocks").named_modules(prefix="blocks"):
        if isinstance(module, nn.Linear):
            last_name = name.rsplit(".", 1)[-1]
            if last_name in _OUTPUTS:
                plan[name] = ColwiseParallel()
            elif last_name in _INPUTS:
                plan[name] = RowwiseParallel()
    return plan


class _Replicated(ParallelStyle):
    """A module that is whole on every rank and does the same there, with DTensors for parameters only."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, input_fn=_as_replicas, output_fn=_as_local)  # type: ignore[arg-type]


def _as_replicas(module: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> Any:
    return tuple(DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in inputs)


def _as_local(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
    return output.to_local()
