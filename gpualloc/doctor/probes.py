"""What the measured checks run, each in processes of its own that were forked with torch loaded.

A probe takes its rank, the number of ranks, and an empty folder that they share.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

_ALL_REDUCE_BYTES = {"gloo": 4 * 2**20, "nccl": 64 * 2**20}
_COLLECTIVE_TIMEOUT = timedelta(seconds=10)
_COPY_BYTES = 128 * 2**20
_NUM_RUNS = 5  # after one that is not timed; the median counts
_LOADER_S = 0.6  # for each number of workers
_LOADER_BATCH_SIZE = 32
_SOURCE_SIZE_PX, _IMAGE_SIZE_PX = 512, 224


class Copies(NamedTuple):
    """Host to device, GB/s."""

    pinned_gb_s: float
    pageable_gb_s: float


def all_reduce(rank: int, world_size: int, folder: str, *, backend: str) -> dict[str, Any]:
    """Sums a buffer whose sum is known over all ranks; {"busbw_gb_s": ..., "is_exact": ...}.

    Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md): bytes / time x 2 (n - 1) / n; None for one rank.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    rendezvous = Path(folder, f"{backend}-rendezvous").as_uri()
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=world_size, timeout=_COLLECTIVE_TIMEOUT)
    num_bytes = _ALL_REDUCE_BYTES[backend]
    values = torch.empty(num_bytes // 4, device=device)
    times_s, is_exact = [], True
    for _ in range(1 + _NUM_RUNS):
        values.fill_(rank + 1)
        dist.barrier()
        _synchronise(device)
        started_s = time.perf_counter()
        dist.all_reduce(values)
        _synchronise(device)
        times_s.append(time.perf_counter() - started_s)
        is_exact &= bool((values == world_size * (world_size + 1) / 2).all())
    dist.destroy_process_group()
    time_s = statistics.median(times_s[1:])
    return {"busbw_gb_s": num_bytes / time_s * 2 * (world_size - 1) / world_size / 1e9 if world_size > 1 else None, "is_exact": is_exact}


def copy_to_device(rank: int, world_size: int, folder: str) -> list[Copies]:
    """Of every visible GPU, one after the other: an upper bound of what a loader can feed it."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=torch.device("cuda", index))
        speeds = []
        for is_pinned in (True, False):
            source = torch.ones(_COPY_BYTES, dtype=torch.uint8, pin_memory=is_pinned)
            times_s = []
            for _ in range(1 + _NUM_RUNS):
                torch.cuda.synchronize(index)
                started_s = time.perf_counter()
                target.copy_(source, non_blocking=is_pinned)
                torch.cuda.synchronize(index)
                times_s.append(time.perf_counter() - started_s)
            speeds.append(_COPY_BYTES / statistics.median(times_s[1:]) / 1e9)
        found.append(Copies(*speeds))
    return found


class _Images:
    """Made bytes, resized as a transform does: work on one core, as decoding is, and a small result to hand over."""

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> Any:
        import torch

        image = torch.full((1, 3, _SOURCE_SIZE_PX, _SOURCE_SIZE_PX), float(index % 256))
        resized = torch.nn.functional.interpolate(image, size=(_IMAGE_SIZE_PX, _IMAGE_SIZE_PX), mode="bilinear", antialias=True)
        return resized[0].to(torch.uint8)


def load_images(rank: int, world_size: int, folder: str, *, num_workers: int) -> list[float]:
    """Images a second through a DataLoader with 0 and with `num_workers` workers."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    speeds = []
    for workers in (0, num_workers):
        batches: Any = iter(DataLoader(_Images(), batch_size=_LOADER_BATCH_SIZE, num_workers=workers))  # type: ignore[arg-type]
        next(batches)  # the workers have started
        started_s = time.perf_counter()
        num_batches = 0
        while time.perf_counter() - started_s < _LOADER_S:
            next(batches)
            num_batches += 1
        speeds.append(num_batches * _LOADER_BATCH_SIZE / (time.perf_counter() - started_s))
        del batches
    return speeds


def sleep(rank: int, world_size: int, folder: str, *, seconds: float) -> int:
    """For the tests of the time limit."""
    time.sleep(seconds)
    return os.getpid()


PROBES: dict[str, Callable[..., Any]] = {
    "all_reduce": all_reduce,
    "copy_to_device": copy_to_device,
    "load_images": load_images,
    "sleep": sleep,
}


def _synchronise(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
