"""Measures one rank's share of a case: blocks of synchronised steps, and blocks of the same steps without synchronisation.

The two kinds alternate, so that a machine that drifts hits both alike. Where reader processes work ahead, untimed steps first use up
what they got ready during the pause, so that every block waits for reading as a long run does. Where the figures come from:

    step_time      block of steps as they train, each from "next batch" to "optimiser has stepped"
    compute_time   block under no_sync, or over links that take no time where a rehearsed strategy has no such block; the training
                   state is put back afterwards, so the losses are those of a run without it
    input_samples_per_s  batches taken from the readers as fast as they come, on all ranks at once, after the last block
"""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor

from gpualloc import strategies
from gpualloc.bench import nvml
from gpualloc.bench import precision as precisions
from gpualloc.bench.interval import is_tight
from gpualloc.bench.isolation import RankWatch
from gpualloc.bench.preparation import prepare_model
from gpualloc.bench.rank_files import DEFAULT_CI_TARGET, RankReport
from gpualloc.comm import HookStats
from gpualloc.records import BenchCase
from gpualloc.rehearsal import links_take_no_time
from gpualloc.strategies.wrapped import Batch, Wrapped
from gpualloc.workloads import count_prefetched_batches, make_optimizer, open_batches
from gpualloc.workloads.batches import count_readers
from gpualloc.workloads.images import count_cores

_MAX_REPEATS_FACTOR = 4  # times the repeats asked for, where their interval is wide or some were disturbed
_EXTRA_REPEATS_UNTIL_S = 10.0  # after the first timed step: a slow case is not made twice as long
_MIN_COMPUTE_STEPS = 3
_MAX_DECISION_STEPS = 200  # and while the hook still measures which plan is fastest, alike on every rank
_INPUT_TIMED_S = 1.0  # and at least as long as the readers need for what they keep ready
_MAX_SCALE_STEPS = 16  # further warm-up steps while GradScaler still lowers its scale: from 65536 to 1


class Trainer:
    """A model in training on one rank, one step at a time."""

    def __init__(self, case: BenchCase, *, rank: int, device: torch.device) -> None:
        torch.manual_seed(case.seed + rank)  # dropout: other masks on every rank
        self.case = case
        self.device = device
        self.wrapped = strategies.wrap(case, prepare_model(case, device), device)
        self.optimizer = make_optimizer(case, self.wrapped.model.parameters())
        self.scaler = precisions.make_scaler(case.precision, device.type)
        if self.wrapped.is_sharded:  # torch's scaler that skips a step on all ranks if one rank must
            self.scaler = ShardedGradScaler(device.type, enabled=self.scaler.is_enabled())

    def step(self, batches: Iterator[Batch]) -> Tensor:
        """One optimizer step, queued on the current stream. Returns the mean loss of its batches, a scalar on the device."""
        num_batches = self.case.grad_accum_steps
        self.optimizer.zero_grad(set_to_none=True)
        no_sync = self.wrapped.no_sync or nullcontext
        losses = []
        for index in range(num_batches):
            with no_sync() if index < num_batches - 1 else nullcontext():
                losses.append(
                    self.wrapped.forward_backward(
                        self._to_device(next(batches)),
                        autocast=lambda: precisions.autocast(self.case.precision, self.device.type),
                        scale=lambda loss: self.scaler.scale(loss / num_batches if num_batches > 1 else loss),
                    )
                )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses[0] if num_batches == 1 else torch.stack(losses).mean()

    def _to_device(self, batch: Batch) -> Batch:
        inputs, targets = (
            precisions.convert_input(part.to(self.device, non_blocking=self.case.non_blocking), self.case.precision) for part in batch
        )
        return (inputs.contiguous(memory_format=torch.channels_last) if self.case.channels_last else inputs), targets

    def warm_up(self, batches: Iterator[Batch]) -> None:
        """The case's warm-up, then on until a step is not skipped, which lacks the optimiser, and until the hook has made up its mind."""
        scale = self.scaler.get_scale()
        for _ in range(self.case.num_warmup_steps):
            scale = self.scaler.get_scale()
            self.step(batches)
        for _ in range(_MAX_SCALE_STEPS):
            if self.scaler.get_scale() >= scale:
                break
            scale = self.scaler.get_scale()
            self.step(batches)
        for _ in range(_MAX_DECISION_STEPS):
            if self.wrapped.handle is None or self.wrapped.handle.decided:
                return
            self.step(batches)

    @contextmanager
    def state_put_back(self) -> Iterator[None]:
        """Whatever is trained inside is undone: parameters, buffers, optimiser, loss scale and generators. The copy is on the host."""
        model = self.wrapped.model
        parts: tuple[Any, ...] = (self.optimizer, self.scaler)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        trained = {name: value for name, value in model.state_dict().items() if name not in frozen}
        checkpoint = io.BytesIO()
        torch.save([trained, *(part.state_dict() for part in parts)], checkpoint)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            yield
        checkpoint.seek(0)
        trained, *states = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(trained, strict=False)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)


def measure_rank(case: BenchCase, *, rank: int, device: torch.device, ci_target: float = DEFAULT_CI_TARGET) -> RankReport:
    """Trains and times the case on this rank. The default process group exists unless all is in one process."""
    pin_memory = device.type == "cuda" if case.pin_memory is None else case.pin_memory
    trainer = Trainer(case, rank=rank, device=device)
    data_case, data_rank = strategies.data_of(case, rank)
    batches = open_batches(data_case, rank=data_rank, pin_memory=pin_memory)
    trainer.warm_up(batches)

    hook_before = trainer.wrapped.handle.stats() if trainer.wrapped.handle else None
    step_times_s: list[list[float]] = []
    compute_times_s: list[list[float]] = []
    disturbances: list[list[str]] = []
    watch = RankWatch(gpu_uuid=_uuid(device), ranks_per_gpu=case.ranks_per_gpu, num_ranks=strategies.num_processes(case))
    losses: list[float] = []
    num_skipped = 0
    num_read_ahead = math.ceil(count_prefetched_batches(data_case) / case.grad_accum_steps)
    peak_memory_bytes = 0
    clocks = nvml.Clocks(sm_clock_mhz=None, mem_clock_mhz=None)
    compute_batches: Iterator[Batch] | None = None
    started_s = time.monotonic()
    while _wants_repeat(case, step_times_s, list(map(bool, disturbances)), time.monotonic() - started_s, device, ci_target):
        for _ in range(num_read_ahead):
            trainer.step(batches)
        watch.start()
        _wait_for_all(device)
        scale = trainer.scaler.get_scale()
        times_s, first_loss, last_loss = _time_steps(lambda: trainer.step(batches), case.num_steps, device)
        clocks = _read_clocks(device)
        disturbances.append(watch.stop())
        num_skipped += round(max(0.0, math.log2(scale / trainer.scaler.get_scale())))  # GradScaler halves its scale for each
        step_times_s.append(times_s)
        losses += [first_loss.item(), last_loss.item()]
        peak_memory_bytes = peak_memory_bytes or read_peak_memory_bytes(device)  # before any copy of the state
        if case.strategy == "single" or (trainer.wrapped.no_sync is None and not case.is_rehearsed):
            compute_times_s.append([])  # all of it is computing, or it cannot be told apart
            continue
        # A second stream of batches, so that the synchronised steps see the data they would see alone.
        compute_batches = compute_batches or open_batches(data_case, rank=data_rank, pin_memory=pin_memory)
        compute_times_s.append(_time_compute(trainer, compute_batches, num_read_ahead))

    wire_bytes_per_step, nonfinite_steps = _count_since(hook_before, trainer.wrapped)
    if nonfinite_steps is None and trainer.scaler.is_enabled():
        nonfinite_steps = num_skipped
    return RankReport(
        step_times_s=step_times_s,
        compute_times_s=compute_times_s,
        loss_start=losses[0] if trainer.wrapped.knows_loss else None,
        # the same step in all cases, however many repeats were added
        loss_end=losses[2 * case.num_repeats - 1] if trainer.wrapped.knows_loss else None,
        peak_memory_bytes=peak_memory_bytes,
        wire_bytes_per_step=wire_bytes_per_step,
        nonfinite_steps=nonfinite_steps,
        parameter_checksum=_checksum(trainer.wrapped.model),
        shard=trainer.wrapped.shard,
        sm_clock_mhz=clocks.sm_clock_mhz,
        mem_clock_mhz=clocks.mem_clock_mhz,
        disturbances=disturbances,
        notes=watch.notes(),
        input_samples_per_s=_measure_input(case, data_case, batches, device),
    )


def _measure_input(case: BenchCase, data_case: BenchCase, batches: Iterator[Batch], device: torch.device) -> float | None:
    """This rank's part of what readers on all cores of the machine would deliver without training; None where none read ahead."""
    num_ahead = count_prefetched_batches(data_case)
    if num_ahead == 0:
        return None
    _wait_for_all(device)
    for _ in range(num_ahead):
        next(batches)
    num_batches, begin_s = 0, time.perf_counter()
    while num_batches < num_ahead or (num_batches < 4 * num_ahead and time.perf_counter() - begin_s < _INPUT_TIMED_S):
        next(batches)
        num_batches += 1
    samples_per_s = num_batches * data_case.per_device_batch_size / (time.perf_counter() - begin_s)
    return samples_per_s * max(1.0, count_cores() / (strategies.num_processes(case) * count_readers(data_case)))


def _time_compute(trainer: Trainer, batches: Iterator[Batch], num_read_ahead: int) -> list[float]:
    num_steps = trainer.case.num_steps
    without_communication = trainer.wrapped.no_sync or links_take_no_time  # the latter where ranks are rehearsed
    with trainer.state_put_back(), without_communication():
        for _ in range(num_read_ahead):
            trainer.step(batches)
        _wait_for_all(trainer.device)  # all ranks compute at the same time, as they do in the synchronised steps
        num_compute_steps = min(num_steps, max(_MIN_COMPUTE_STEPS, num_steps // 2))
        times_s, _, _ = _time_steps(lambda: trainer.step(batches), num_compute_steps, trainer.device)
    return times_s


def _time_steps(step: Callable[[], Tensor], num_steps: int, device: torch.device) -> tuple[list[float], Tensor, Tensor]:
    """(seconds of each step, first loss, last loss). On CUDA the host queues all steps and waits once, at the end."""
    marks, losses = [_mark(device)], []
    for index in range(num_steps):
        loss = step()
        marks.append(_mark(device))
        if index in (0, num_steps - 1):
            losses.append(loss)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return [_seconds(start, end) for start, end in pairwise(marks)], losses[0], losses[-1]


def _mark(device: torch.device) -> Any:
    """A point in time: of the host, or on CUDA an event where the current stream now is."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _seconds(start: Any, end: Any) -> float:
    return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3)


def _wants_repeat(
    case: BenchCase, step_times_s: list[list[float]], is_disturbed: list[bool], elapsed_s: float, device: torch.device, ci_target: float
) -> bool:
    """Whether to run another repeat: the same answer on every rank, from the slowest rank's figures and what any of them saw."""
    done = len(step_times_s)
    if done < case.num_repeats:
        return True
    if done >= _MAX_REPEATS_FACTOR * case.num_repeats:
        return False
    figures = torch.tensor([elapsed_s, *map(statistics.median, step_times_s), *is_disturbed], dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(figures, op=dist.ReduceOp.MAX)
    elapsed_s, *rest = figures.tolist()
    undisturbed_s = [time_s for time_s, disturbed in zip(rest[:done], rest[done:], strict=True) if not disturbed]
    if elapsed_s >= _EXTRA_REPEATS_UNTIL_S:
        return False
    return len(undisturbed_s) < case.num_repeats or (case.num_repeats > 1 and not is_tight(undisturbed_s, ci_target))


def _wait_for_all(device: torch.device) -> None:
    if dist.is_initialized():
        dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: its ru_maxrss survives exec, so it would count the parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 2**10


def _read_clocks(device: torch.device) -> nvml.Clocks:
    """The GPU's clocks, right after a timed block while they are still those of the load."""
    if device.type != "cuda":
        return nvml.Clocks(sm_clock_mhz=None, mem_clock_mhz=None)
    return nvml.read_clocks(str(_uuid(device)))


def _uuid(device: torch.device) -> str | None:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def _count_since(before: HookStats | None, wrapped: Wrapped) -> tuple[int | None, int | None]:
    """(bytes a step puts on the wire, steps with non-finite gradients): counted by the hook, or known from the parameters."""
    if wrapped.handle is None or before is None:
        return wrapped.wire_bytes_per_step, None
    now = wrapped.handle.stats()
    wire_bytes_per_step = (now.wire_bytes - before.wire_bytes) // (now.steps - before.steps)
    if now.nonfinite_steps is None or before.nonfinite_steps is None:
        return wire_bytes_per_step, None
    return wire_bytes_per_step, now.nonfinite_steps - before.nonfinite_steps


def _checksum(model: nn.Module) -> str:
    """The bits of each parameter that this rank holds summed as integers: exact, whatever the order of the sum."""
    sums = []
    for parameter in model.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[local.element_size()]
        sums.append(int(local.detach().view(bits).sum(dtype=torch.int64)))
    return " ".join(map(str, sums))
