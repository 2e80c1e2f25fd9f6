"""Times a training loop from inside its process while it rehearses: with the links as modelled, then with links that take no time.

A step ends where the first optimizer's `step` does. W steps are warm-up, prolonged until gpualloc's hooks have decided; N are timed; then
one more, and N with links that take no time: what the step would be without communication.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpualloc.bench.measure import read_peak_memory_bytes
from gpualloc.comm import undecided_hooks
from gpualloc.profiling.recorder import TrainingStopped
from gpualloc.rehearsal.virtual_group import collective_totals, links_take_no_time

_MAX_DECISION_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class TimedSteps:
    """What one rehearsal gave. Times are medians over the timed steps."""

    device: str
    num_steps: int  # timed
    step_time_s: float
    step_time_low_s: float  # 10th percentile
    step_time_high_s: float  # 90th percentile
    compute_time_s: float  # the step over links that take no time
    comm_time_s: float  # sum of a step's collectives, each alone on its link
    comm_bytes: float  # of their tensors
    num_collectives: float
    peak_memory_bytes: int

    @property
    def exposed_comm_s(self) -> float:
        """What a step waits for communication."""
        return max(0.0, self.step_time_s - self.compute_time_s)


class StepTimer:
    """Times while its block lasts, then raises `TrainingStopped` out of the optimizer's step."""

    def __init__(self, *, num_warmup_steps: int, num_steps: int, say: Callable[[str], None] = lambda text: None) -> None:
        assert num_warmup_steps >= 1
        assert num_steps >= 1
        self.num_warmup_steps, self.num_steps = num_warmup_steps, num_steps
        self.num_done = 0
        self.result: TimedSteps | None = None
        self._say = say
        self._optimizer: Any = None
        self._device = torch.device("cpu")
        self._marks: list[Any] = []
        self._compute_marks: list[Any] = []
        self._totals = (0, 0, 0.0)
        self._no_links = ExitStack()

    @property
    def is_traced(self) -> bool:
        """Whether there is a result."""
        return self.result is not None

    is_done = is_traced

    def __enter__(self) -> StepTimer:
        self._hook = register_optimizer_step_post_hook(self._after_step)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        self._no_links.close()

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._optimizer is None:
            self._optimizer = optimizer
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            self._device = next(parameters).device
            self._say(f"first step on {self._device}; {self.num_warmup_steps + 2 * self.num_steps + 1} steps or more")
        if optimizer is not self._optimizer or self.is_done:
            return
        self.num_done += 1
        if not self._marks:
            self._warm_up()
        elif len(self._marks) <= self.num_steps:
            self._time()
        else:
            self._compute()

    def _warm_up(self) -> None:
        if self.num_done < self.num_warmup_steps:
            return
        if undecided_hooks() and self.num_done < self.num_warmup_steps + _MAX_DECISION_STEPS:
            return
        self._synchronise()
        self._totals = collective_totals()
        self._marks.append(self._mark())

    def _time(self) -> None:
        self._marks.append(self._mark())
        if len(self._marks) > self.num_steps:
            self._synchronise()
            before, now = self._totals, collective_totals()
            self._totals = (now[0] - before[0], now[1] - before[1], now[2] - before[2])
            self._no_links.enter_context(links_take_no_time())

    def _compute(self) -> None:
        self._compute_marks.append(self._mark())
        if len(self._compute_marks) <= self.num_steps:
            return
        self._synchronise()
        times_s, compute_times_s = (self._intervals(marks) for marks in (self._marks, self._compute_marks))
        tenths = statistics.quantiles(times_s, n=10, method="inclusive") if len(times_s) > 1 else [times_s[0]] * 9
        operations, num_bytes, seconds = self._totals
        self.result = TimedSteps(
            device=torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            num_steps=self.num_steps,
            step_time_s=statistics.median(times_s),
            step_time_low_s=tenths[0],
            step_time_high_s=tenths[-1],
            compute_time_s=statistics.median(compute_times_s),
            comm_time_s=seconds / self.num_steps,
            comm_bytes=num_bytes / self.num_steps,
            num_collectives=operations / self.num_steps,
            peak_memory_bytes=read_peak_memory_bytes(self._device),
        )
        raise TrainingStopped

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _intervals(self, marks: list[Any]) -> list[float]:
        if self._device.type != "cuda":
            return [end - start for start, end in pairwise(marks)]
        return [start.elapsed_time(end) / 1e3 for start, end in pairwise(marks)]

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
