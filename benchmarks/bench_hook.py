"""What a hook adds to a DDP step, world size 1 so that no wire hides it: pytest benchmarks/bench_hook.py"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from gpualloc.comm import fp16_hook

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOOKS = {
    "none": lambda ddp: None,
    "torch_fp16": lambda ddp: ddp.register_comm_hook(None, fp16_compress_hook),
    "gpualloc_fp32": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp32"),
    "gpualloc_fp16": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp16"),
    "gpualloc_fp16_callable": lambda ddp: ddp.register_comm_hook(None, fp16_hook),
}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if DEVICE == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=(Path(folder) / "rendezvous").as_uri(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.parametrize("hook", HOOKS)
def test_step_of_100_small_buckets(benchmark: BenchmarkFixture, hook: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(100))).to(DEVICE)
    ddp = DistributedDataParallel(net, gradient_as_bucket_view=True, bucket_cap_mb=64 * 64 * 4 / 2**20)
    HOOKS[hook](ddp)
    inputs = torch.randn(8, 64, device=DEVICE)

    def step() -> None:
        ddp.zero_grad(set_to_none=True)
        ddp(inputs).square().mean().backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"backward with 100 buckets, {DEVICE}"
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    benchmark.pedantic(step, rounds=100, warmup_rounds=10)
