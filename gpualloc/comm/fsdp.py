"""16-bit gradient averages between the replicas of an FSDP2 model: hybrid sharding with half the bytes between nodes.

Of `fully_shard` on a two-dimensional mesh (native HSDP) the all-reduce between replicas cannot be replaced: a hook set with
`FSDPModule.set_all_reduce_hook` runs after it. On the mesh's sharding dimension alone FSDP reduces within a replica only, and the hook
that it calls next averages over the replicas.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from gpualloc.comm.callable_hooks import narrow, widen
from gpualloc.errors import UsageError

_WIRES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def register_fsdp_hook(model: nn.Module, replicas: dist.ProcessGroup, wire: str = "bf16") -> None:
    """Average the gradients of every FSDP module in `model` over `replicas`, FP32 ones in 16 bits, from the next backward pass on.

    Args:
        model: after `fully_shard(..., mesh=mesh["shard"])` of it and its parts; the replicas must start from the same weights.
        replicas: the ranks that hold the same shard, as `mesh["replicate"].get_group()`.
        wire: "bf16" or "fp16"; gradients are divided by the number of replicas in FP32 before they are narrowed. FP16 has no wire scale
            here: what is beyond 65504 or below 6e-8 is lost.

    Raises:
        UsageError: no module is FSDP's; a parameter is distributed over `replicas` already, as in native HSDP; not a wire.
    """
    if wire not in _WIRES:
        raise UsageError(f"register_fsdp_hook: wire={wire!r} is not one of {', '.join(_WIRES)}")
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not modules:
        raise UsageError(
            f'register_fsdp_hook: {type(model).__name__} has no FSDP module; call fully_shard(model, mesh=mesh["shard"]) first'
        )
    others = set(dist.get_process_group_ranks(replicas)) - {dist.get_rank()}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and others & set(parameter.device_mesh.mesh.flatten().tolist()):
            raise UsageError(
                f"register_fsdp_hook: {name} is distributed over the ranks {parameter.device_mesh.mesh.tolist()}, the replicas "
                f"{sorted(others)} among them, so FSDP reduces over these itself; fully_shard it on the sharding dimension alone: "
                'mesh=mesh["shard"]'
            )
    hook = _all_reduce_hook(replicas, _WIRES[wire])
    for module in modules:
        module.set_all_reduce_hook(hook)


def _all_reduce_hook(replicas: dist.ProcessGroup, wire_dtype: torch.dtype) -> Callable[[Tensor], None]:
    scale = 1 / replicas.size()

    def average(gradients: Tensor) -> None:
        """In place, on FSDP's all-reduce stream, which is the current one; `gradients` come from its reduce-scatter stream."""
        if gradients.is_cuda:
            # Where FSDP casts them it frees them for the next reduce-scatter, which does not wait for this stream.
            gradients.record_stream(torch.cuda.current_stream())
        if gradients.dtype != torch.float32:
            dist.all_reduce(gradients.mul_(scale), group=replicas)
            return
        averaged = narrow(gradients, wire_dtype, scale)
        dist.all_reduce(averaged, group=replicas)
        widen(averaged, gradients)

    return average
