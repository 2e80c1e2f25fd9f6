"""What this device reaches in this process: of matrix products, of copies, and of an operator that has nothing to do."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from gpualloc.profiling.breakdown import median_self_time_us
from gpualloc.profiling.records import MachineSpeed
from gpualloc.profiling.trace import read_trace

_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LARGEST_SIDE = {"cuda": 8192, "cpu": 2048}
_LONG_ENOUGH_S = 0.02  # for one product: then its launch no longer counts
_NUM_TRIES = 3  # of which the fastest counts
_COPY_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}  # past the last cache
_NUM_EMPTY_OPS = 50


def measure_speed(device: torch.device, format: str) -> MachineSpeed:
    """Speeds of a large matrix product and a large copy, with this process's threads; it takes a fraction of a second.

    Args:
        format: of the product; one that cannot be multiplied plainly, such as fp8, is measured in bf16.
    """
    name = format if format in _DTYPES else "bf16"
    with _float32_products(name):
        matmul_flops_per_s = _measure_matmul(device, _DTYPES[name])
    return MachineSpeed(matmul_flops_per_s=matmul_flops_per_s, matmul_format=name, copy_bytes_per_s=_measure_copy(device))


@contextmanager
def _float32_products(format: str) -> Iterator[None]:
    """In TF32 for "tf32", else not. As they are where the program set torch's newer switches, with which this one cannot be mixed."""
    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if format == "tf32" else "highest")
    except RuntimeError:
        yield
        return
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def _measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Of a Linear layer, whose product a CPU computes several times as fast in half precision as torch.mm's."""
    side, best_flops_per_s = 256, 0.0
    while True:
        a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
        time_s = _fastest_s(lambda a=a, b=b: F.linear(a, b), device)  # type: ignore[misc]
        best_flops_per_s = max(best_flops_per_s, 2 * float(side) ** 3 / time_s)
        if time_s >= _LONG_ENOUGH_S or side >= _LARGEST_SIDE[device.type]:
            return best_flops_per_s
        side *= 2


@torch.no_grad()
def _measure_copy(device: torch.device) -> float:
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest_s(lambda: target.copy_(source), device)


def _fastest_s(call: Callable[[], object], device: torch.device) -> float:
    times_s = []
    for _ in range(1 + _NUM_TRIES):
        _synchronize(device)
        start_s = time.perf_counter()
        call()
        _synchronize(device)
        times_s.append(time.perf_counter() - start_s)
    return min(times_s[1:])  # the first one warms up


def measure_op_overhead_us() -> float:
    """What a CPU operator takes on one element under the profiler: the costliest of a few common ones, forward with autograd, by median."""
    a = torch.ones(1, requires_grad=True)
    matrix = torch.ones(1, 1)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        for _ in range(_NUM_EMPTY_OPS):
            torch.mul(a, a)
            torch.add(a, a)
            torch.tanh(a)
            torch.mm(matrix, matrix)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        trace = read_trace(path)
    found = (median_self_time_us(trace, f"aten::{name}") for name in ("mul", "add", "tanh", "mm"))
    return max((each for each in found if each is not None), default=0.0)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
