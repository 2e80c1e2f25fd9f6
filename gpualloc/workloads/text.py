"""Text as bytes: each rank reads its own stretch of the text and takes random windows of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase
from gpualloc.workloads.data import describe_data, require_samples
from gpualloc.workloads.files import find_texts
from gpualloc.workloads.loading import Batch, read_batches
from gpualloc.workloads.seeds import make_generator


def open_text_batches(case: BenchCase, *, rank: int, pin_memory: bool) -> Iterator[Batch]:
    """Random windows of this rank's stretch of the text, for ever: int64 [B, T] tokens and [B, T] the token after each.

    Raises:
        UsageError: the text is missing or too short.
        GpuallocError: a file cannot be read.
    """
    num_windows = describe_data(case).num_samples
    require_samples(num_windows, per_device_batch_size=case.per_device_batch_size, world_size=case.world_size)
    text = read_shard(find_texts(case.data), rank=rank, world_size=case.world_size)
    assert case.sequence_length is not None
    windows = _Windows(text, length=case.sequence_length)
    starts = _draw_starts(len(windows), case.per_device_batch_size, generator=make_generator(case.seed, "windows", rank))
    return read_batches(windows, starts, case, rank=rank, num_workers=case.num_workers or 0, pin_memory=pin_memory)


def read_shard(files: list[tuple[str, int]], *, rank: int, world_size: int) -> Tensor:
    """uint8 [num_bytes // world_size]: stretch `rank` of the files (path, size in bytes) laid end to end."""
    shard_bytes = sum(size_bytes for _, size_bytes in files) // world_size
    text = bytearray()
    file_start = 0  # of this file in the whole text
    for path, size_bytes in files:
        first = max(rank * shard_bytes - file_start, 0)
        last = min((rank + 1) * shard_bytes - file_start, size_bytes)
        if first < last:
            text += _read_bytes(path, first, last)
        file_start += size_bytes
    return torch.frombuffer(text, dtype=torch.uint8)


def _read_bytes(path: str, first: int, last: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(first)
            content = file.read(last - first)
    except OSError as error:
        raise GpuallocError(f"cannot read text {path!r}: {error.strerror}; check the file or remove it") from error
    if len(content) < last - first:
        raise GpuallocError(f"text {path!r} shrank while it was read; run again when nothing writes to it")
    return content


class _Windows(Dataset[Batch]):
    def __init__(self, text: Tensor, *, length: int) -> None:
        self._windows = text.unfold(0, length + 1, 1)  # [number of starts, T + 1], a view

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, starts: Tensor) -> Batch:
        batch = self._windows[starts].long()
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def _draw_starts(num_starts: int, batch_size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield torch.randint(num_starts, (batch_size,), generator=generator)
