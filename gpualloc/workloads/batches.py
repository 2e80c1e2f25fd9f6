"""The batches a rank trains on, whatever the data."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gpualloc.records import BenchCase
from gpualloc.workloads.images import open_image_batches
from gpualloc.workloads.synthetic import open_synthetic_batches
from gpualloc.workloads.text import open_text_batches


def open_batches(case: BenchCase, *, rank: int, pin_memory: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Host batches of `case.per_device_batch_size` samples, without end; no two ranks share a sample.

    Images come as (fp32 [B, 3, H, W], int64 [B] classes), text as (int64 [B, T] tokens, int64 [B, T] the token after each).
    The same (seed, rank) gives the same batches. Pinning needs a GPU.

    Raises:
        UsageError: the data cannot be used.
        GpuallocError: here or from the iterator, naming a file that cannot be read.
    """
    if case.data == "synthetic":
        return open_synthetic_batches(case, rank=rank, pin_memory=pin_memory)
    if case.workload == "image":
        return open_image_batches(case, rank=rank, pin_memory=pin_memory)
    return open_text_batches(case, rank=rank, pin_memory=pin_memory)
