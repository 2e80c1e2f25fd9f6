"""What one rank of 2 replicas x 2 shards does in the FSDP tests."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from gpualloc.comm.fsdp import register_fsdp_hook
from gpualloc.errors import UsageError
from tests.comm.profiled import profiled

# Elements of a shard: (5 x 33 + 5) / 2 and (33 x 7 + 33) / 2, each padded to whole rows; in the order of the backward pass.
SHARDS = [3 * 33 + 3, 17 * 7 + 17]


def make_mesh(device: str) -> DeviceMesh:
    return init_device_mesh(device, (2, 2), mesh_dim_names=("replicate", "shard"))


def sharded(mesh: DeviceMesh, device: str, **policy: torch.dtype) -> nn.Module:
    """Three FSDP modules of odd sizes, which FSDP pads, with the same weights on all ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 5)).to(device)
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(**policy))
    return model


def backward(model: nn.Module, device: str, step: int, factor: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
    (model(torch.randn(4, 7, generator=generator).to(device)).float().square().mean() * factor).backward()


def gradients(model: nn.Module) -> list[Tensor]:
    """This rank's shards."""
    found = []
    for parameter in model.parameters():
        assert isinstance(parameter.grad, DTensor)
        found.append(parameter.grad.to_local().cpu().clone())
    return found


def averages(rank: int, world_size: int, device: str, wire: str, policy: dict[str, torch.dtype], accumulate: bool) -> dict[str, Any]:
    """Gradients of the second backward pass with the hook, of native HSDP, and of each replica by itself; and what they all-reduced.

    With `accumulate` those of the first pass, which does not synchronise, are among them.
    """
    mesh = make_mesh(device)
    models = {"native": sharded(mesh, device, **policy), "replica": sharded(mesh["shard"], device, **policy)}
    models["hook"] = sharded(mesh["shard"], device, **policy)
    register_fsdp_hook(models["hook"], mesh["replicate"].get_group(), wire)
    results: dict[str, Any] = {}
    for name, model in models.items():
        model.set_requires_gradient_sync(not accumulate)
        backward(model, device, 0)
        model.set_requires_gradient_sync(True)
        if not accumulate:
            model.zero_grad()
        with profiled() as profiler:
            backward(model, device, 1)
        results[name] = gradients(model)
        results[f"{name} wire"] = _all_reduces(profiler)
    return results


def _all_reduces(profiler: torch.profiler.profile) -> list[tuple[str, int]]:
    """(dtype, elements) of each shard that was all-reduced. gloo's reduce-scatter is an all-reduce of both."""
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    events.sort(key=lambda event: event.get("ts", 0))
    seen = [(e["args"]["Input type"][0], e["args"]["Input Dims"][0][0]) for e in events if e.get("name") == "gloo:all_reduce"]
    return [(dtype, numel) for dtype, numel in seen if numel in SHARDS]


def extremes(rank: int, world_size: int, device: str) -> dict[str, list[Tensor]]:
    """Gradients of 1e5 in one replica and 0 in the other, whose mean fits FP16."""
    mesh = make_mesh(device)
    arrived = {}
    for wire in ("fp16", "bf16"):
        model = nn.Linear(4, 4, bias=False).to(device)
        nn.init.ones_(model.weight)
        fully_shard(model, mesh=mesh["shard"])
        register_fsdp_hook(model, mesh["replicate"].get_group(), wire)
        model(torch.full((1, 4), 1e5 if mesh.get_local_rank("replicate") == 0 else 0.0, device=device)).sum().backward()
        arrived[wire] = gradients(model)
    return arrived


def training(rank: int, world_size: int, device: str) -> list[Tensor]:
    """Weights after some steps of AdamW with clipping."""
    mesh = make_mesh(device)
    model = sharded(mesh["shard"], device)
    register_fsdp_hook(model, mesh["replicate"].get_group())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)
    for step in range(6):
        backward(model, device, step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.full_tensor().detach().cpu() for parameter in model.parameters()]


def refusals(rank: int, world_size: int, device: str) -> None:
    mesh = make_mesh(device)
    replicas = mesh["replicate"].get_group()
    native = sharded(mesh, device)
    with pytest.raises(UsageError, match=r"0\.weight is distributed over the ranks .* fully_shard it on the sharding dimension alone"):
        register_fsdp_hook(native, replicas)
    with pytest.raises(UsageError, match="Linear has no FSDP module"):
        register_fsdp_hook(nn.Linear(2, 2), replicas)
    with pytest.raises(UsageError, match="wire='int8' is not one of fp16, bf16"):
        register_fsdp_hook(sharded(mesh["shard"], device), replicas, "int8")
    backward(native, device, 0)  # what was refused trains on as it was
    assert all(gradient.isfinite().all() for gradient in gradients(native))
