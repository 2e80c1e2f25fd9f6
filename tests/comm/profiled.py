"""torch.profiler around collectives of gloo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SETTLE_S = 0.1  # gloo's threads need microseconds


@contextmanager
def profiled() -> Iterator[torch.profiler.profile]:
    """A profiler of the CPU that stops once gloo's threads are done.

    Gloo's work completes its future first and closes its range in the trace then (finishWorkGloo in torch 2.13's ProcessGroupGloo.cpp), and
    DDP waits for the future of a hook alone. Where the range is closed after the profiler has stopped, torch writes to memory that was
    given back, and the rank ends in "malloc(): corrupted" or worse, once in some runs.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        yield profiler
        time.sleep(SETTLE_S)
