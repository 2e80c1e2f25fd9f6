"""pack and unpack on the device at hand, to find regressions: pytest benchmarks/bench_ops.py

Every round takes other memory than the one before. CUDA times include the launch and a synchronisation (some microseconds);
benchmarks/compare_pack.py measures the kernels alone, beside their peers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.parameter_lists import gradient_sets, rotate
from gpualloc import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


CALLS: dict[str, Callable[[list[Tensor], Tensor], None]] = {
    "pack-gpualloc": lambda gradients, flat: ops.pack(gradients, flat, 0.5),
    "unpack-gpualloc": lambda gradients, flat: ops.unpack(flat, gradients),
}


@pytest.mark.parametrize("model", ["mobilenet_v2", "resnet50"])
@pytest.mark.parametrize("call", CALLS)
def test_ops(benchmark: BenchmarkFixture, call: str, model: str) -> None:
    turns = itertools.cycle(rotate(gradient_sets(model, DEVICE)))
    benchmark.group = f"{call.split('-')[0]} {model} {DEVICE}"
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"

    def run(gradients: list[Tensor], flat: Tensor) -> None:
        CALLS[call](gradients, flat)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, setup=lambda: (next(turns), {}), rounds=60, warmup_rounds=5)
