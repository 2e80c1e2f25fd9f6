"""From what a recorder holds to the profile of its rank."""

from __future__ import annotations

import os

import torch

from gpualloc.bench.environment import read_cpu_name
from gpualloc.errors import GpuallocError
from gpualloc.profiling.breakdown import break_down
from gpualloc.profiling.calibration import measure_op_overhead_us, measure_speed
from gpualloc.profiling.costs import main_format, summarise_costs
from gpualloc.profiling.peaks import find_peaks, utilisation_of_peak
from gpualloc.profiling.recorder import Recorder
from gpualloc.profiling.records import MachineSpeed, RankProfile
from gpualloc.profiling.trace import read_trace


def analyse(
    recorder: Recorder, *, rank: int = 0, world_size: int = 1, num_local_ranks: int = 1, notes: tuple[str, ...] = ()
) -> RankProfile:
    """The rank's profile; measures the device's speed for it, in this process.

    Args:
        num_local_ranks: that share the cores which this process may use.

    Raises:
        GpuallocError: the training ended before enough of it was recorded.
    """
    _require_trace(recorder)
    device = recorder.device
    assert device is not None
    assert recorder.memory is not None
    calls = [] if recorder.counter is None else recorder.counter.calls
    if not recorder.is_done:
        calls = []  # of part of a step
    speed, speed_notes = _measure_speed(device, main_format(calls))
    breakdown = break_down(
        read_trace(recorder.trace_path),
        device=device.type,
        op_overhead_us=measure_op_overhead_us() if device.type == "cpu" else 0.0,
    )
    profiled_step_time_s = breakdown.times.step_time_s
    costs = summarise_costs(calls, speed)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else read_cpu_name()
    peaks = find_peaks(device_name) if device.type == "cuda" else None
    mfu = None if costs is None else utilisation_of_peak(costs.flops, step_time_s=recorder.step_time_s, peaks=peaks)
    return RankProfile(
        rank=rank,
        world_size=world_size,
        device=device.type,
        device_name=device_name,
        num_steps=recorder.num_steps,
        step_time_s=recorder.step_time_s,
        profiled_step_time_s=profiled_step_time_s,
        times=breakdown.times.without_overhead(profiled_step_time_s - recorder.step_time_s),
        gpu_busy=breakdown.busy,
        costs=costs,
        speed=speed,
        mfu=mfu,
        peak_source=None if mfu is None or peaks is None else peaks.source,
        utilisation=recorder.utilisation,
        memory=recorder.memory,
        loader=recorder.loader,
        num_cpus=max(1, len(os.sched_getaffinity(0)) // num_local_ranks),
        trace_path=str(recorder.trace_path),
        notes=(*notes, *speed_notes),
    )


def _require_trace(recorder: Recorder) -> None:
    if recorder.is_traced:
        return
    if recorder.num_done == 0:
        raise GpuallocError(
            "no optimizer step was seen, so there are no steps to profile; the training must call step() of a torch.optim optimizer in "
            "this process, not in one that it starts"
        )
    raise GpuallocError(
        f"the training ended after {recorder.num_done} steps and the profile needs {recorder.num_needed}; train longer, or lower --steps "
        f"({recorder.num_steps}) or --warmup-steps ({recorder.num_warmup_steps})"
    )


def _measure_speed(device: torch.device, format: str) -> tuple[MachineSpeed | None, tuple[str, ...]]:
    try:
        return measure_speed(device, format), ()
    except torch.OutOfMemoryError:
        return None, ("the device's speed was not measured: the training left no memory for it",)
