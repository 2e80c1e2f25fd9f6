"""The batches a rank trains on, whatever the data."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gpualloc.records import BenchCase
from gpualloc.workloads.images import choose_num_workers, open_image_batches
from gpualloc.workloads.models import find_model
from gpualloc.workloads.synthetic import open_synthetic_batches, open_user_batches
from gpualloc.workloads.text import open_text_batches

_PREFETCH_FACTOR = 2  # batches a reader process works ahead: DataLoader's default


def open_batches(case: BenchCase, *, rank: int, pin_memory: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Host batches of `case.per_device_batch_size` samples, without end; no two ranks share a sample.

    Images come as (fp32 [B, 3, H, W], int64 [B] classes), text as (int64 [B, T] tokens, int64 [B, T] the token after each).
    The same (seed, rank) gives the same batches. Pinning needs a GPU.

    Raises:
        UsageError: the data cannot be used.
        GpuallocError: here or from the iterator, naming a file that cannot be read.
    """
    if find_model(case.model, workload=case.workload).is_user_model:
        return open_user_batches(case, rank=rank, pin_memory=pin_memory)
    if case.data == "synthetic":
        return open_synthetic_batches(case, rank=rank, pin_memory=pin_memory)
    if case.workload == "image":
        return open_image_batches(case, rank=rank, pin_memory=pin_memory)
    return open_text_batches(case, rank=rank, pin_memory=pin_memory)


def reads_images(case: BenchCase) -> bool:
    """Whether images are read from files or enlarged, by as many processes as the cores allow where the case does not say."""
    return case.data != "synthetic" and case.workload == "image"


def count_prefetched_batches(case: BenchCase) -> int:
    """Batches that readers may have ready after a pause: so many steps later a step waits for reading as it does in a long run."""
    return _PREFETCH_FACTOR * count_readers(case)


def count_readers(case: BenchCase) -> int:
    """Processes of a rank that read batches ahead."""
    return choose_num_workers(case) if reads_images(case) else case.num_workers or 0
