"""The hook's figures every few steps as a flat dict of floats, for whatever keeps curves: W&B, TensorBoard, Lightning, a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from gpualloc.comm.handle import HookHandle

PREFIX = "gpualloc/"
Log = Callable[[dict[str, float], int], object]


class StatsLogger:
    """Hands the hook's figures to `log(metrics, step)`, on the rank that wants them.

    Waits neither for the device nor for other ranks. A figure that is not there yet is left out, and no step's times are handed over twice.

        stats = gpualloc.comm.StatsLogger(hook, wandb.log, every_steps=50)
        for batch in batches:
            ...
            stats.after_step()

    Args:
        handle: what `register_comm_hook` returned.
        log: called with the figures and a step.
        every_steps: of the hook: synchronised backward passes.

    Raises:
        UsageError: every_steps is not above 0.
    """

    def __init__(self, handle: HookHandle, log: Log, *, every_steps: int = 50) -> None:
        if every_steps < 1:
            raise UsageError(f"StatsLogger: every_steps={every_steps}; choose a whole number above 0, such as 50")
        self._handle = handle
        self._log = log
        self._every_steps = every_steps
        self._figures = HookFigures(handle)

    def after_step(self, step: int | None = None) -> None:
        """To be called after every step, or more often. `step` is what `log` is given; None: the hook's own count."""
        steps = self._handle.steps
        if steps - self._figures.steps_read >= self._every_steps:
            self._log(self._figures.read(), steps if step is None else step)


class HookFigures:
    """What the hook has measured since it was read last."""

    def __init__(self, handle: HookHandle) -> None:
        self._handle = handle
        self._counters = _CountersOnTheWay()
        counted = handle.glance().counted
        self.steps_read = counted.steps
        self._bytes_read, self._transfers_read = counted.wire_bytes, counted.transfers
        self._timed_step = 0

    def read(self) -> dict[str, float]:
        """The figures by name. Times are of one step, bytes and transfers a step's mean since the last call, counts are totals."""
        glance = self._handle.glance()
        counted, times = glance.counted, glance.times
        figures: dict[str, float] = {"steps": counted.steps}
        num_steps = counted.steps - self.steps_read
        if num_steps > 0:
            figures["wire_mb_per_step"] = (counted.wire_bytes - self._bytes_read) / num_steps / 1e6
            figures["transfers_per_step"] = (counted.transfers - self._transfers_read) / num_steps
        self.steps_read, self._bytes_read, self._transfers_read = counted.steps, counted.wire_bytes, counted.transfers
        if times is not None and glance.timed_step != self._timed_step:
            self._timed_step = glance.timed_step
            figures |= {
                "step_time_s": times.period_s,
                "compute_time_s": times.period_s - times.exposed_s,
                "comm_time_s": times.comm_s,
                "exposed_comm_s": times.exposed_s,
                "hidden_comm_s": times.hidden_s,
            }
            if times.comm_s > 0:
                figures["overlap_ratio"] = times.hidden_s / times.comm_s
        counters = self._counters.follow(glance.counters)
        if counters is not None and self._handle.wire != "fp32":
            figures["nonfinite_steps"], figures["saturated_steps"], figures["wire_scale"] = counters
        return {PREFIX + name: float(value) for name, value in figures.items()}


class _CountersOnTheWay:
    """Brings small tensors to the host without waiting: from a GPU they arrive by the next call, or a later one."""

    def __init__(self) -> None:
        self._on_the_way: tuple[Tensor, torch.cuda.Event] | None = None  # pinned memory, and when it is filled

    def follow(self, counters: Tensor | None) -> list[float] | None:
        """The latest that have arrived and were not returned before; None where there are none."""
        if counters is None:
            return None
        if not counters.is_cuda:
            return list(counters.tolist())
        arrived = None
        if self._on_the_way is not None:
            landing, landed = self._on_the_way
            if not landed.query():  # type: ignore[no-untyped-call]
                return None
            arrived = list(landing.tolist())
        landing = torch.empty(counters.shape, dtype=counters.dtype, pin_memory=True)
        landing.copy_(counters, non_blocking=True)
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record(torch.cuda.current_stream(counters.device))
        self._on_the_way = landing, landed
        return arrived
