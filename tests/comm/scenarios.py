"""What one rank does in the hook tests: small DDP models whose averaged gradients are known exactly."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from tests.comm.hook_table import HOOKS
from tests.comm.profiled import profiled

SIZES = ((33, 17), (1,), (8, 3, 3, 3), (5,), (1000, 7), ())  # odd, one-element, channels-last and scalar parameters


def coefficients(rank: int, step: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The gradients that `Known` gives on `rank` in `step`: over the magnitudes an FP16 wire can hold."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [
        (torch.randn(size, generator=generator) * torch.exp2(torch.randint(-12, 6, size, generator=generator).float())).to(dtype)
        for size in SIZES
    ]


def exact_mean(world_size: int, step: int) -> list[Tensor]:
    """FP64 average over the ranks."""
    return [
        torch.stack([c.double() for c in per_rank]).mean(0)
        for per_rank in zip(*(coefficients(r, step) for r in range(world_size)), strict=True)
    ]


class Known(nn.Module):
    """loss = sum(parameter * coefficient), so that every parameter's gradient is its coefficient."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(size, dtype=dtype)) for size in SIZES)
        self.weights[2].data = self.weights[2].data.contiguous(memory_format=torch.channels_last)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, coefficients: list[Tensor], use_all: bool) -> Tensor:
        total = torch.stack([(w * c).sum() for w, c in zip(self.weights, coefficients, strict=True)]).sum()
        return total + 0.5 * self.unused.sum() if use_all else total


def wrap(model: nn.Module, device: str, **options: Any) -> DistributedDataParallel:
    options.setdefault("bucket_cap_mb", 0.01)  # several buckets
    return DistributedDataParallel(model.to(device), **options)


def known_gradients(
    rank: int,
    world_size: int,
    device: str,
    hook: str,
    options: dict[str, Any],
    *,
    steps: int = 3,
    accumulate: bool = False,
    use_all: bool = True,
    set_to_none: bool = True,
) -> tuple[list[list[Tensor]], dict[str, Any] | None]:
    """Every step's gradients, and the hook's stats. `accumulate`: one more backward under no_sync before each step's own."""
    ddp = wrap(Known(), device, **options)
    handle = HOOKS[hook](ddp)
    gradients = []
    for step in range(steps):
        ddp.zero_grad(set_to_none=set_to_none)
        local = [c.to(device) for c in coefficients(rank, step)]
        with ddp.no_sync() if accumulate else contextlib.nullcontext():
            if accumulate:
                ddp(local, use_all).backward()
        ddp(local, use_all).backward()
        gradients.append([w.grad.detach().cpu().clone() for w in ddp.module.weights])
    return gradients, handle.state_dict() if handle is not None else None


def train(rank: int, world_size: int, device: str, hook: str, steps: int = 4, compile_model: bool = False) -> list[Tensor]:
    """Parameters after a few steps of a small convolutional net in channels-last, GradScaler included on fp16 hooks."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    ddp = wrap(net.to(memory_format=torch.channels_last), device, gradient_as_bucket_view=True)
    HOOKS[hook](ddp)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(device, init_scale=256.0)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        images = torch.randn(4, 3, 8, 8, generator=generator).to(device, memory_format=torch.channels_last)
        labels = torch.randint(0, 5, (4,), generator=generator).to(device)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(ddp(images), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    return [parameter.detach().cpu() for parameter in ddp.parameters()]


def scaler_skips_overflow(rank: int, world_size: int, device: str) -> dict[str, Any]:
    """One rank's gradient is inf: every rank must skip that step and count it."""
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    ddp = wrap(model, device, gradient_as_bucket_view=True)
    handle = gpualloc.register_comm_hook(ddp, wire="fp16")
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler(device, init_scale=4.0, growth_interval=100)
    weights = []
    for step in range(3):
        size = float("inf") if step == 1 and rank == 0 else 0.25
        optimizer.zero_grad()
        scaler.scale(ddp(torch.full((1, 4), size, device=device)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        weights.append(model.weight.detach().cpu().clone())
    return {"weights": weights, "scale": scaler.get_scale(), "nonfinite_steps": handle.stats().nonfinite_steps}


def other_dtypes(rank: int, world_size: int, device: str, hook: str, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of a model in `dtype`, which no hook may narrow."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(40, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight * x).sum().abs()

    ddp = wrap(Product(), device)
    HOOKS[hook](ddp)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        ddp.zero_grad()
        ddp(torch.randn(40, generator=generator, dtype=torch.float64).to(dtype).to(device)).backward()
    return [parameter.grad.detach().cpu() for parameter in ddp.parameters()]


def wire_of_one_step(rank: int, world_size: int, device: str, hook: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """(dtype, elements) of each tensor given to gloo's all-reduce in one step, as torch's profiler saw them; and the stats."""
    import json
    import tempfile
    from pathlib import Path

    ddp = wrap(Known(), device)
    handle = HOOKS[hook](ddp)
    local = [c.to(device) for c in coefficients(rank, 0)]
    for _ in range(2):  # buckets are rebuilt after the first step
        ddp(local, True).backward()
    before = handle.stats()
    with profiled() as profiler:
        ddp(local, True).backward()
    after = handle.stats()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    seen = [(e["args"]["Input type"][0], e["args"]["Input Dims"][0][0]) for e in events if e.get("name") == "gloo:all_reduce"]
    return seen, {name: getattr(after, name) - getattr(before, name) for name in ("steps", "transfers", "wire_bytes")}


def long_run(rank: int, world_size: int, device: str) -> dict[str, Any]:
    """200 steps, every seventh non-finite on the last rank only; a second hook continues from the first one's state."""
    ddp = wrap(nn.Linear(3, 2), device)
    handle = gpualloc.register_comm_hook(ddp, wire="bf16")
    for step in range(200):
        bad = step % 7 == 0 and rank == world_size - 1
        ddp(torch.full((1, 3), float("nan") if bad else 1.0, device=device)).sum().backward()
        ddp.zero_grad()
    saved = handle.state_dict()
    resumed = gpualloc.register_comm_hook(wrap(nn.Linear(3, 2), device), wire="bf16")
    resumed.load_state_dict(saved)
    return {"saved": saved, "resumed": resumed.state_dict()}


def norms(rank: int, world_size: int, device: str, wire: str, sum_squares: bool) -> dict[str, Any]:
    """Gradient norm, clipping and found_inf of a model with FP32 and FP64 parameters, beside torch's own."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(nn.Parameter(torch.ones(size)) for size in ((3000,), (7, 5), (1,)))
            self.wide = nn.Parameter(torch.ones(11, dtype=torch.float64))

        def forward(self, factor: Tensor) -> Tensor:
            return sum((weight * factor * (k + 1)).sum() for k, weight in enumerate(self.weights)) + (self.wide * factor).sum()

    ddp = wrap(Mixed(), device, gradient_as_bucket_view=True)
    handle = gpualloc.register_comm_hook(ddp, wire=wire, sum_squares=sum_squares)
    results: dict[str, Any] = {"steps": []}
    for step in range(4):  # the buckets are rebuilt after the first
        ddp.zero_grad()
        factor = float("inf") if step == 2 and rank == 0 else 0.5 + rank + step
        ddp(torch.tensor(factor, device=device)).backward()
        gradients = [parameter.grad for parameter in ddp.parameters()]
        theirs = torch.nn.utils.get_total_norm(gradients).cpu()
        found = handle.found_inf().cpu()
        handle.stats()  # reading the totals changes nothing
        ours, clipped = handle.grad_norm().cpu(), handle.clip_grad_norm_(3.0).cpu()
        after = torch.nn.utils.get_total_norm(gradients).cpu()
        results["steps"].append({"theirs": theirs, "ours": ours, "clipped": clipped, "after": after, "found_inf": found})
    return results


def constant_gradients(rank: int, world_size: int, device: str, values: tuple[float, float], steps: int) -> dict[str, Any]:
    """What arrives, step by step, where rank r's gradient is always values[r] and the wire scale is dynamic."""
    ddp = wrap(nn.Linear(1, 1, bias=False), device)
    handle = gpualloc.register_comm_hook(ddp, wire="fp16")
    arrived, scales = [], []
    for _ in range(steps):
        ddp.zero_grad()
        ddp(torch.full((1, 1), values[rank], device=device)).sum().backward()
        arrived.append(ddp.module.weight.grad.item())
        scales.append(handle.stats().wire_scale)
    resumed_ddp = wrap(nn.Linear(1, 1, bias=False), device)
    resumed = gpualloc.register_comm_hook(resumed_ddp, wire="fp16")
    resumed.load_state_dict(handle.state_dict())
    resumed_ddp(torch.full((1, 1), values[rank], device=device)).sum().backward()
    return {
        "arrived": arrived,
        "scales": scales,
        "nonfinite_steps": handle.stats().nonfinite_steps,
        "saturated_steps": handle.stats().saturated_steps,
        "resumed": resumed_ddp.module.weight.grad.item(),
    }


def jumping_gradient(rank: int, world_size: int, device: str) -> dict[str, Any]:
    """What arrives where rank 0's gradient is 1, and 1e6 from the fifth step on."""
    ddp = wrap(nn.Linear(1, 1, bias=False), device)
    handle = gpualloc.register_comm_hook(ddp, wire="fp16")
    arrived, scales = [], []
    for step in range(8):
        ddp.zero_grad()
        ddp(torch.full((1, 1), 1e6 if rank == 0 and step >= 4 else 1.0, device=device)).sum().backward()
        arrived.append(ddp.module.weight.grad.item())
        scales.append(handle.stats().wire_scale)
    stats = handle.stats()
    return {"arrived": arrived, "scales": scales, "saturated_steps": stats.saturated_steps, "nonfinite_steps": stats.nonfinite_steps}
