"""What one rank does when a peer dies, stalls or raises while its buckets are on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gpualloc.comm import fp16_hook
from tests.comm.hook_table import Dot, must_average, whole, whole_mean, wrap

TIMEOUT_S = 3.0  # of the groups in which a rank stops taking part


def _ready_model(rank: int, device: str, hook: str, group: dist.ProcessGroup | None = None) -> tuple[DistributedDataParallel, Any]:
    """Three parameters in a bucket each, after the two steps in which DDP rebuilds its buckets."""
    ddp, handle = wrap(Dot(*(torch.ones(500) for _ in range(3))), device, hook, bucket_cap_mb=0.0015, process_group=group)
    for step in range(3):
        ddp.zero_grad()
        ddp([whole(rank, step, 500)] * 3).backward()
    return ddp, handle


def _failure(ddp: DistributedDataParallel, rank: int) -> tuple[str, float]:
    """(the error of a backward pass, seconds until it was raised)."""
    loss = ddp([whole(rank, 3, 500)] * 3)
    started = time.monotonic()
    try:
        loss.backward()
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - started
    return "none", time.monotonic() - started


def peer_dies(rank: int, world_size: int, device: str, hook: str, folder: str) -> None:
    """The last rank is killed while the others wait for it in their backward pass; these write down what they saw of it."""
    ddp, handle = _ready_model(rank, device, hook)
    dist.barrier()
    if rank == world_size - 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    error, waited_s = _failure(ddp, rank)
    steps = handle.stats().steps if handle is not None else 4
    Path(folder, f"{hook}-{rank}").write_text(f"{waited_s}\n{steps}\n{error}")


def peer_stalls(rank: int, world_size: int, device: str, hooks: Sequence[str]) -> dict[str, tuple[str, float, int]]:
    """Rank 1 does not come to its backward passes; (error, seconds, steps counted) of rank 0, which is in all of them at once.

    A group for each hook; afterwards both ranks train on in another.
    """
    models = {}
    for hook in hooks:
        models[hook] = _ready_model(rank, device, hook, dist.new_group(timeout=timedelta(seconds=TIMEOUT_S)))
    seen = {}
    if rank == 0:
        with ThreadPoolExecutor(len(hooks)) as threads:
            failures = {hook: threads.submit(_failure, ddp, rank) for hook, (ddp, _) in models.items()}
        for hook, (_, handle) in models.items():
            seen[hook] = (*failures[hook].result(), handle.stats().steps if handle is not None else 4)
    dist.barrier()
    for hook in hooks:
        _trains_on(rank, world_size, device, hook)
    return seen


def hook_raises(rank: int, world_size: int, device: str) -> tuple[str, float]:
    """A user's hook around ours raises on rank 0 at its second bucket; rank 1 gets no second bucket from it."""
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    armed = False

    def hook(state: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        if armed and rank == 0 and bucket.index() == 1:
            raise ValueError("the user's own error")
        return fp16_hook(state, bucket)

    hook.__annotations__ = {}
    ddp = DistributedDataParallel(Dot(*(torch.ones(500) for _ in range(3))).to(device), bucket_cap_mb=0.0015, process_group=group)
    ddp.register_comm_hook(group, hook)
    for _ in range(3):
        ddp([whole(rank, 0, 500)] * 3).backward()
    armed = True
    seen = _failure(ddp, rank)
    dist.barrier()
    _trains_on(rank, world_size, device, "fp16_callable")
    return seen


def _trains_on(rank: int, world_size: int, device: str, hook: str) -> None:
    ddp, _ = wrap(Dot(torch.ones(7)), device, hook)
    for step in range(2):
        ddp.zero_grad()
        ddp([whole(rank, step, 7)]).backward()
        must_average(ddp.module.weights[0].grad, whole_mean(world_size, step, 7), hook, "after the failure", step)
