"""Which samples a rank reads: each once an epoch, in an order that does not depend on how many ranks there are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ResumableSampler(Sampler[int]):
    """This rank's share of one epoch's order, from a position on.

    A step's samples are consecutive in the order, so that a job that stopped goes on with the next ones, on as many ranks as it then has.
    What is left over at the end, less than a step takes, is dropped.

    Args:
        num_samples: of the data set.
        seed: of the order; every epoch has its own.
        samples_per_step: of all ranks, accumulated ones included.
    """

    def __init__(self, num_samples: int, *, seed: int, rank: int, world_size: int, samples_per_step: int) -> None:
        self._num_samples, self._seed = num_samples, seed
        self._rank, self._world_size, self._samples_per_step = rank, world_size, samples_per_step
        self._epoch, self._position = 0, 0

    def go_to(self, epoch: int, position: int) -> None:
        """Args:
        position: samples of the epoch that all ranks together have read.
        """
        self._epoch, self._position = epoch, position

    def __len__(self) -> int:
        left = self._num_samples - self._position
        return left // self._samples_per_step * self._samples_per_step // self._world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._num_samples, generator=generator)[self._position :]
        own = order[self._rank : len(self) * self._world_size : self._world_size]
        yield from own.tolist()
