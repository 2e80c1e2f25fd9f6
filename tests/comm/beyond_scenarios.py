"""What one rank does where the hook is held to more than torch's own cases: extreme values, odd buckets, several groups."""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.comm import scenarios
from tests.comm.hook_table import Dot, must_average, whole, whole_mean, wrap
from tests.comm.profiled import profiled


def constant(rank: int, world_size: int, device: str, hook: str, values: Sequence[Sequence[float]], steps: int) -> list[list[float]]:
    """What arrives in each step, of each of `values`, where rank r's gradient is always values[i][r]. One model each."""
    arrived = []
    for value in values:
        ddp, _ = wrap(Dot(torch.ones(1)), device, hook)
        arrived.append([])
        for _ in range(steps):
            ddp.zero_grad()
            ddp([torch.tensor([value[rank]])]).backward()
            arrived[-1].append(ddp.module.weights[0].grad.item())
    return arrived


INF, NAN = float("inf"), float("nan")
# Each rank's gradient and the average, in steps 1 and 3. The ranks of step 3 have equally many infinities.
NONFINITE = {
    1: ([[1, INF, 2, 3, 4, -INF], [1, 5, NAN, 3, 4, INF]], [1, INF, NAN, 3, 4, NAN]),
    3: ([[INF, 1, 2, 3, -INF, 8], [INF, 1, 2, 3, -INF, 8]], [INF, 1, 2, 3, -INF, 8]),
}


def nonfinite(rank: int, world_size: int, device: str, hook: str) -> list[tuple[float, int]] | None:
    """inf and NaN in two of five steps: where they were put and nowhere else, and (found_inf, nonfinite_steps) of every step."""
    ddp, handle = wrap(Dot(torch.ones(6), torch.ones(6)), device, hook, bucket_cap_mb=1e-5)
    seen = []
    for step in range(5):
        gradients, average = NONFINITE.get(step, ([whole(r, step, 6).tolist() for r in (0, 1)], whole_mean(2, step, 6).tolist()))
        ddp.zero_grad()
        ddp([torch.tensor(gradients[rank]), whole(rank, step, 6)]).backward()
        got = ddp.module.weights[0].grad
        if hook == "int8" and step in NONFINITE:  # the whole block of 256 elements shares the scale
            assert got.isnan().all()
        else:
            must_average(got.nan_to_num(99), torch.tensor(average).nan_to_num(99), hook, step)
        must_average(ddp.module.weights[1].grad, whole_mean(2, step, 6), hook, step)
        if handle is not None:
            seen.append((handle.found_inf().item(), handle.stats().nonfinite_steps))
    return seen if handle is not None else None


SHAPES = ((), (1,), (3,), (0,), (7, 5), (257,), (0, 4), (1023,))


def odd_buckets(rank: int, world_size: int, device: str, hook: str) -> None:
    """Parameters of 0, 1 and odd sizes: a bucket each, so that some have one element or none, and all in one, misaligned."""
    for cap, view in ((1e-6, False), (1e-6, True), (25, False), (25, True)):
        ddp, handle = wrap(Dot(*(torch.ones(shape) for shape in SHAPES)), device, hook, bucket_cap_mb=cap, gradient_as_bucket_view=view)
        for step in range(3):
            ddp.zero_grad()
            ddp([whole(rank, step, *shape) for shape in SHAPES]).backward()
            for weight in ddp.module.weights:
                must_average(weight.grad, whole_mean(world_size, step, *weight.shape), hook, cap, view, step, tuple(weight.shape))
        assert handle is None or handle.stats().nonfinite_steps in (0, None)


def one_rank(rank: int, world_size: int, device: str, hook: str) -> None:
    """A group of one: the gradient stays what it is."""
    for view in (False, True):
        ddp, _ = wrap(Dot(torch.ones(7), torch.ones(3)), device, hook, bucket_cap_mb=1e-5, gradient_as_bucket_view=view)
        for step in range(3):
            ddp.zero_grad()
            ddp([whole(rank, step, 7), whole(rank, step, 3)]).backward()
            for weight in ddp.module.weights:
                must_average(weight.grad, whole(rank, step, *weight.shape), hook, view, step)


def two_groups(rank: int, world_size: int, device: str, hook: str) -> None:
    """Two models a rank, one over all ranks and one over a half of them, by turns and in one backward pass."""
    halves = [list(range(world_size // 2)), list(range(world_size // 2, world_size))]
    groups = [dist.new_group(half) for half in halves]
    mine = next(index for index, half in enumerate(halves) if rank in half)
    everyone, of_all = wrap(Dot(torch.ones(9), torch.ones(4)), device, hook, bucket_cap_mb=1e-5)
    half, of_half = wrap(Dot(torch.ones(9), torch.ones(4)), device, hook, bucket_cap_mb=1e-5, process_group=groups[mine])
    for step in range(4):
        everyone.zero_grad()
        half.zero_grad()
        local = [whole(rank, step, 9), whole(rank, step, 4)]
        if step < 2:
            half(local).backward()
            everyone(local).backward()
        else:
            (half(local) + everyone(local)).backward()
        for weight in everyone.module.weights:
            must_average(weight.grad, whole_mean(world_size, step, *weight.shape), hook, "all", step)
        for weight in half.module.weights:
            mean = torch.stack([whole(r, step, *weight.shape) for r in halves[mine]]).mean(0)
            must_average(weight.grad, mean, hook, "half", step)
    if of_all is not None:
        assert of_all.stats().steps == of_half.stats().steps == 4


def gradients(rank: int, world_size: int, device: str, hook: str) -> list[list[Tensor]]:
    """Three steps' gradients of uneven numbers, of which every rank and every run has to have the same bits."""
    return scenarios.known_gradients(rank, world_size, device, hook, {"gradient_as_bucket_view": True})[0]


def complex_model(rank: int, world_size: int, device: str, hook: str) -> Tensor:
    """A complex64 parameter of a Fourier layer after a few steps of Adam, beside FP32 parameters."""

    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.filter = nn.Parameter(torch.randn(9, dtype=torch.complex64))
            self.out = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.fft.irfft(torch.fft.rfft(x) * self.filter))

    ddp, _ = wrap(Fourier(), device, hook)
    optimizer = torch.optim.Adam([ddp.module.filter], lr=0.01)  # the FP32 parameters, narrowed on the wire, stay as they are
    for step in range(3):
        optimizer.zero_grad()
        ddp(whole(rank, step, 4, 16).to(device)).square().mean().backward()
        optimizer.step()
    return ddp.module.filter.detach().cpu()


def wire(rank: int, world_size: int, device: str, hook: str) -> set[str]:
    """The types of what went into the backend's all-reduce in a third step, as torch's profiler saw them."""
    ddp, _ = wrap(Dot(torch.ones(500), torch.ones(33)), device, hook, bucket_cap_mb=1e-4)
    local = [whole(rank, 0, 500), whole(rank, 0, 33)]
    for _ in range(2):
        ddp(local).backward()
    with profiled() as profiler:
        ddp(local).backward()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    return {event["args"]["Input type"][0] for event in events if event.get("name") in ("gloo:all_reduce", "nccl:all_reduce")}


class WithActivations(Dot):
    """`Dot` that holds 16 MiB of activations at the end of its forward pass, and has freed them when its buckets are ready."""

    def forward(self, coefficients: list[Tensor]) -> Tensor:
        loss = super().forward(coefficients)
        activations = torch.ones(2 << 20, device=loss.device) * self.weights[0][0]
        return loss + 0 * activations.exp().sum()


def peak_memory_mib(rank: int, world_size: int, device: str, hook: str) -> float:
    """Peak above what lay there before, in the last two of four steps of a model of 4 MiB of gradients.

    On the CPU the peak of the resident set, with every buffer above 64 KiB in pages of its own that go back when it is freed;
    the lesser of two runs, since the first of a kind also loads code and starts threads.
    """
    mallopt_mmap_threshold = -3
    ctypes.CDLL(None).mallopt(mallopt_mmap_threshold, 64 << 10)
    local = [torch.ones(1 << 18, device=device) for _ in range(4)]

    def run() -> float:
        gc.collect()
        before_mib = _memory_mib(device, peak=False)
        model = WithActivations(*(torch.ones(1 << 18) for _ in range(4)))
        ddp, _handle = wrap(model, device, hook, bucket_cap_mb=1, gradient_as_bucket_view=True)
        for step in range(4):
            if step == 2:
                _reset_peak(device)
            ddp.zero_grad()
            ddp(local).backward()
        return _memory_mib(device, peak=True) - before_mib

    return min(run(), run())


def _memory_mib(device: str, peak: bool) -> float:
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    field = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)) / 1024


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
