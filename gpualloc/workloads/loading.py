"""A torch DataLoader that reads whole batches, in worker processes or here.

A data set takes what stands for a whole batch, such as its indices, so that there is one place where work per batch can be done at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase
from gpualloc.workloads.seeds import make_generator

Batch: TypeAlias = tuple[Tensor, Tensor]


def read_batches(
    dataset: Dataset[Any], batches: Iterable[Any], case: BenchCase, *, rank: int, num_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """dataset[batch] for each of `batches`.

    Raises:
        GpuallocError: from the iterator, one that the data set returned. Raised in a worker it would arrive with a traceback for a message.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,  # the sampler makes the batches
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=make_generator(case.seed, "workers", rank),  # else the loader draws from the global generator
    )
    for batch in loader:
        if isinstance(batch, GpuallocError):
            raise batch
        inputs, targets = batch
        yield inputs, targets
