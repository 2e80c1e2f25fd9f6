"""FSDP2 (torch's fully_shard): a rank keeps a share of each parameter, its gradient and its optimiser state.

"fsdp" shards over all ranks, "hsdp" over half of them and averages gradients with the other half. Each block of the model is gathered
for its forward and again for its backward; what is in no block, such as embeddings, once a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from gpualloc.records import BenchCase
from gpualloc.strategies.layout import NUM_REPLICAS
from gpualloc.strategies.wrapped import Autocast, Batch, Scale, Wrapped
from gpualloc.workloads import compute_loss

_HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def wrap(case: BenchCase, model: nn.Module, device: torch.device) -> Wrapped:
    """Each block sharded, then the rest. fp16 and bf16 are a policy of FSDP's: half parameters on the wire, FP32 gradients.

    Batch normalisation takes no half parameters beside its FP32 averages, so a model with it goes under autocast, its wire in FP32.
    """
    half = _HALF_TYPES.get(case.precision)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        half = None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=None if half is None else torch.float32)
    mesh = _make_mesh(case, device)
    num_shards = mesh.size(-1)
    blocks = list(find_blocks(model))
    wire_bytes = _wire_bytes(model, blocks, half, num_shards=num_shards, num_replicas=mesh.size() // num_shards)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)

    def run_batch(batch: Batch, *, autocast: Autocast, scale: Scale) -> Tensor:
        loss = compute_loss(model, batch)
        scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return Wrapped(
        model=model,
        no_sync=None,  # gradients could stay, but parameters would still be gathered
        wire_bytes_per_step=wire_bytes,
        run_batch=None if half is None else run_batch,
        shard=mesh.get_local_rank(-1),
        is_sharded=True,
    )


def find_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members with parameters of the model's outermost lists and sequences: transformer blocks, stages of convolutions."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from find_blocks(child)


def _make_mesh(case: BenchCase, device: torch.device) -> DeviceMesh:
    if case.strategy == "fsdp":
        return init_device_mesh(device.type, (case.world_size,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (NUM_REPLICAS, case.world_size // NUM_REPLICAS), mesh_dim_names=("replicate", "shard"))


def _wire_bytes(model: nn.Module, blocks: list[nn.Module], half: torch.dtype | None, *, num_shards: int, num_replicas: int) -> int:
    """Bytes of what a rank gathers and scatters in a step, whole and padded, and of the shares it averages with other replicas.

    gathered  = (all parameters + those in blocks again) x bytes of the forward's type
    scattered = all gradients x bytes of theirs, of which 1 / num_shards is then all-reduced over the replicas
    """
    gathered = _padded_bytes(model.parameters(), num_shards, half)
    gathered += _padded_bytes((parameter for block in blocks for parameter in block.parameters()), num_shards, half)
    scattered = _padded_bytes((parameter for parameter in model.parameters() if parameter.requires_grad), num_shards, None)
    return gathered + scattered + (scattered // num_shards if num_replicas > 1 else 0)


def _padded_bytes(parameters: Iterable[nn.Parameter], num_shards: int, dtype: torch.dtype | None) -> int:
    """Of parameters whose first dimension is padded until it can be shared equally."""
    num_bytes = 0
    for parameter in parameters:
        rows, row_numel = parameter.shape[0], math.prod(parameter.shape[1:])
        num_bytes += math.ceil(rows / num_shards) * num_shards * row_numel * (dtype or parameter.dtype).itemsize
    return num_bytes
