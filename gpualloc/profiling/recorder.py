"""Records a training loop from inside its process, step by step, without a change to it.

A step ends where the first optimizer's `step` does (torch.optim.optimizer.register_optimizer_step_post_hook). What happens when:

    W steps   warm-up
    N steps   timed without the profiler: step time, memory, the GPU's counters
    1 step    the profiler starts up
    N steps   traced, from mark to mark, the device synchronised before the first and the last one
    1 step    so that the last traced optimizer's range is whole
    1 step    operators counted

The counts are the same on every rank, so the ranks of a job do the same at the same time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.profiler import record_function
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import dataloader

from gpualloc.errors import GpuallocError
from gpualloc.profiling.costs import CostCounter
from gpualloc.profiling.records import LoaderSetting, MemoryUse, Utilisation
from gpualloc.profiling.trace import OWN_WAIT_RANGE, STEP_MARK
from gpualloc.profiling.utilisation import GpuCounters

NUM_EXTRA_STEPS = 3  # beside warm-up, timed and traced ones
_SETTLE_S = 0.1


class TrainingStopped(BaseException):
    """Ends the training loop once all is recorded; no `except Exception` of the loop's own holds it up."""


class Recorder:
    """Records while its block lasts. Afterwards `is_traced` says whether there is something to read.

    Args:
        trace_path: where the trace goes, as .json or .json.gz.
        stops: whether to raise `TrainingStopped` out of the optimizer's step when done.
        say: hears of each stage.
    """

    def __init__(
        self,
        *,
        num_warmup_steps: int,
        num_steps: int,
        trace_path: Path,
        stops: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        assert num_warmup_steps >= 1
        assert num_steps >= 1
        self.num_warmup_steps, self.num_steps = num_warmup_steps, num_steps
        self.trace_path = trace_path
        self.device: torch.device | None = None  # of the first optimizer's parameters
        self.num_done = 0  # steps
        self.is_traced = False
        self.is_done = False
        self.counter: CostCounter | None = None
        self.step_time_s = 0.0  # mean, without the profiler
        self.memory: MemoryUse | None = None
        self.utilisation: Utilisation | None = None
        self.loader: LoaderSetting | None = None
        self._stops, self._say = stops, say
        self._optimizer: Any = None
        self._started_s = 0.0
        self._profiler: Any = None
        self._counters: GpuCounters | None = None
        self._is_counting = False
        first = num_warmup_steps + num_steps + 1  # number of steps before the first mark
        self._stages: dict[int, Callable[[], None]] = {
            num_warmup_steps: self._start_timing,
            num_warmup_steps + num_steps: self._start_tracing,
            first: lambda: self._mark(synchronise=True),
            **dict.fromkeys(range(first + 1, first + num_steps), self._mark),
            first + num_steps: lambda: self._mark(synchronise=True),
            first + num_steps + 1: self._start_counting,
            first + num_steps + 2: self._finish,
        }

    @property
    def num_needed(self) -> int:
        """Steps from the first to the last one."""
        return self.num_warmup_steps + 2 * self.num_steps + NUM_EXTRA_STEPS

    def __enter__(self) -> Recorder:
        self._hook = register_optimizer_step_post_hook(self._after_step)
        self._next = dataloader._BaseDataLoaderIter.__next__
        dataloader._BaseDataLoaderIter.__next__ = self._watch_loader(self._next)  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        dataloader._BaseDataLoaderIter.__next__ = self._next  # type: ignore[method-assign]
        if self._is_counting and self.counter is not None:
            self._is_counting = False
            self.counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._stop_profiler()

    def _watch_loader(self, get_next: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def get_next_watched(iterator: Any) -> Any:
            self.loader = LoaderSetting(num_workers=iterator._num_workers, pin_memory=bool(iterator._pin_memory))
            return get_next(iterator)

        return get_next_watched

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._optimizer is None:
            self._optimizer = optimizer
            self.device = _device_of(optimizer)
            self._say(f"first step on {self.device}; {self.num_needed} steps to record")
        if optimizer is not self._optimizer or self.is_done:
            return
        self.num_done += 1
        stage = self._stages.get(self.num_done)
        if stage is not None:
            stage()

    def _start_timing(self) -> None:
        assert self.device is not None
        self._say(f"timing {self.num_steps} steps without the profiler")
        self._synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._counters = GpuCounters(str(torch.cuda.get_device_properties(self.device).uuid))
            self._counters.start()
        self._started_s = time.perf_counter()

    def _start_tracing(self) -> None:
        assert self.device is not None
        self._synchronise()
        self.step_time_s = (time.perf_counter() - self._started_s) / self.num_steps
        if self._counters is not None:
            self.utilisation = self._counters.stop()
        self.memory = _read_memory(self.device)
        self._say(f"tracing {self.num_steps} steps")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            raise GpuallocError("torch's profiler is running already and there can be one only; turn off the profiler that the script uses")
        self._profiler = profile(activities=activities, acc_events=True)  # else a warning, although there is one cycle
        self._profiler.start()
        gc.collect()  # here rather than in a traced step

    def _mark(self, *, synchronise: bool = False) -> None:
        if synchronise:
            with record_function(OWN_WAIT_RANGE):
                self._synchronise()
        with record_function(STEP_MARK):
            pass

    def _start_counting(self) -> None:
        assert self.device is not None
        self._say("counting the operators of a step")
        profiler = self._stop_profiler()
        try:
            profiler.export_chrome_trace(str(self.trace_path))
            self.trace_path.stat()  # of plain JSON the profiler's library only says on stderr that it could not write it
        except (OSError, RuntimeError) as error:
            raise GpuallocError(
                f"the trace cannot be written to {self.trace_path}: {error}; name another folder with --trace-dir"
            ) from error
        self.is_traced = True
        self.counter = CostCounter(self.device.type)
        self.counter.__enter__()  # type: ignore[no-untyped-call]
        self._is_counting = True

    def _stop_profiler(self) -> Any:
        """Which it was, if one runs.

        Gloo's work completes its future first and closes its range in the trace then (finishWorkGloo in torch 2.13's ProcessGroupGloo.cpp).
        Where that is after the profiler has stopped, torch writes to memory that was given back.
        """
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            if dist.is_available() and dist.is_initialized():
                time.sleep(_SETTLE_S)
            profiler.stop()
        return profiler

    def _finish(self) -> None:
        assert self.counter is not None
        self._is_counting = False
        self.counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.is_done = True
        self._synchronise()
        if self._stops:
            raise TrainingStopped

    def _synchronise(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _device_of(optimizer: Any) -> torch.device:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    devices = {parameter.device for parameter in parameters}
    return next((device for device in devices if device.type == "cuda"), next(iter(devices), torch.device("cpu")))


def _read_memory(device: torch.device) -> MemoryUse:
    from gpualloc.bench.measure import read_peak_memory_bytes

    high_water_bytes = read_peak_memory_bytes(device)
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        headroom_bytes = free_bytes + torch.cuda.memory_reserved(device) - high_water_bytes
    else:
        import psutil

        memory = psutil.virtual_memory()
        headroom_bytes, total_bytes = memory.available, memory.total
    return MemoryUse(high_water_bytes=high_water_bytes, total_bytes=int(total_bytes), headroom_bytes=int(headroom_bytes))
