"""From measured and rehearsed rows to options with speed-up, efficiency and memory; time and money come on top."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from gpualloc.advice.evidence import Evidence, work_key
from gpualloc.advice.intervals import REHEARSED_EFFICIENCY_ERROR, REHEARSED_STEP_ERROR, divided, scaled, widened
from gpualloc.advice.job import Job
from gpualloc.advice.records import Memory, Option
from gpualloc.errors import GpuallocError
from gpualloc.findings import Interval
from gpualloc.findings.ratio import speed_ratio
from gpualloc.records import REHEARSAL, BenchCase, Measurement
from gpualloc.strategies import WHOLE_MODEL, global_batch_size, num_shards
from gpualloc.workloads import estimate_memory_bytes

USABLE_MEMORY = 0.85  # of a device's, as for default batch sizes: the rest is for what an estimate does not count
_RANKS = ("strategy", "hook", "world_size", *REHEARSAL)


def known_options(evidence: Evidence, job: Job, *, device_memory_bytes: int | None, gpus_per_node: int) -> list[Option]:
    """An option for each measured or rehearsed row of the evidence's size, and for each that ran out of memory or failed."""
    rows = [row for row in evidence.at_size if is_of(job, row.case)]
    options = [
        _option(row, baseline(row.case, evidence.rows, job), device_memory_bytes, gpus_per_node)
        for row in rows
        if row.case.world_size > 1 or row.case.strategy == "single" or not _has_single(row.case, rows)
    ]
    for row in evidence.failed:
        if is_of(job, row.case):
            options.append(
                Option(
                    case=row.case,
                    source="rehearsed" if row.case.is_rehearsed else "measured",
                    num_gpus=row.case.world_size,
                    num_nodes=math.ceil(row.case.world_size / gpus_per_node),
                    global_batch_size=global_batch_size(row.case),
                    memory=Memory(num_bytes=None, source="measured", fits=False if row.status == "oom" else None),
                    note="ran out of memory" if row.status == "oom" else f"failed: {row.reason}",
                )
            )
    return options


def baseline(case: BenchCase, rows: Sequence[Measurement], job: Job) -> Measurement | None:
    """One GPU in the same setting: with the same batch in weak scaling, with the whole global batch in strong.

    A single process before one rank of the same strategy and hook.
    """
    if job.scaling == "weak":
        key = work_key(case, without=_RANKS)
        alone = [row for row in rows if row.case.world_size == 1 and work_key(row.case, without=_RANKS) == key]
    else:
        batch = ("per_device_batch_size", "grad_accum_steps")
        key = work_key(case, without=(*_RANKS, *batch))
        alone = [
            row
            for row in rows
            if row.case.world_size == 1
            and work_key(row.case, without=(*_RANKS, *batch)) == key
            and global_batch_size(row.case) == job.global_batch_size
        ]
    fitting = [row for row in alone if row.case.strategy == "single" or (row.case.strategy, row.case.hook) == (case.strategy, case.hook)]
    return min(fitting, key=lambda row: (row.case.strategy != "single", row.step_time_s or 0.0), default=None)


def efficiency_of(row: Measurement, base: Measurement) -> Interval:
    """Throughput over that of as many GPUs alone."""
    work = global_batch_size(row.case) / global_batch_size(base.case) / row.case.world_size
    ratio = speed_ratio([base.repeat_step_times_s], [row.repeat_step_times_s], factor=work)
    return widened(ratio, REHEARSED_EFFICIENCY_ERROR) if row.case.is_rehearsed else ratio


def with_cost_efficiency(options: Sequence[Option], rows: Mapping[tuple[object, ...], Measurement]) -> list[Option]:
    """The options with what a sample costs on the fastest single GPU over what it costs with them.

    It is what more GPUs are judged by: a setting may scale well because it is slow on one.

    Args:
        rows: work_key -> the measurement behind an option.
    """
    alone = [option for option in options if option.num_gpus == 1 and option.samples_per_s is not None and option.memory.fits is not False]
    best = max(alone, key=lambda option: option.samples_per_s.value if option.samples_per_s else 0.0, default=None)
    if best is None or best.samples_per_s is None:
        return list(options)
    base = rows.get(work_key(best.case))
    result = []
    for option in options:
        row = rows.get(work_key(option.case))
        if option is best:
            share: Interval | None = Interval(value=1.0, low=1.0, high=1.0)
        elif row is not None and base is not None:
            share = efficiency_of(row, base)
        else:
            share = None if option.samples_per_s is None else scaled(option.samples_per_s, 1 / option.num_gpus / best.samples_per_s.value)
        result.append(dataclasses.replace(option, cost_efficiency=share))
    return result


def throughput(row: Measurement) -> Interval:
    """Samples per second over all ranks."""
    rate = speed_ratio([], [row.repeat_step_times_s], factor=global_batch_size(row.case))
    return widened(rate, REHEARSED_STEP_ERROR) if row.case.is_rehearsed else rate


def estimated_memory(case: BenchCase, device_memory_bytes: int | None) -> Memory:
    """Before anything runs; unknown for models that are not gpualloc's own."""
    try:
        num_bytes = estimate_memory_bytes(case, num_shards=num_shards(case))
    except GpuallocError:  # a model of one's own that cannot be imported here
        num_bytes = None
    if num_bytes is None:
        return Memory(num_bytes=None, source="unknown", fits=None)
    fits = None if device_memory_bytes is None else num_bytes <= USABLE_MEMORY * device_memory_bytes
    return Memory(num_bytes=num_bytes, source="estimated", fits=fits)


def memory_of(case: BenchCase, rows: Sequence[Measurement], device_memory_bytes: int | None) -> Memory:
    """Of a case that was not run: what it took on another number of GPUs where every one has the whole model, else the estimate."""
    if case.strategy in WHOLE_MODEL:
        key = work_key(case, without=_RANKS)
        same = [
            row.peak_memory_bytes
            for row in rows
            if row.case.strategy in WHOLE_MODEL and row.peak_memory_bytes and work_key(row.case, without=_RANKS) == key
        ]
        if same:
            return Memory(num_bytes=max(same), source="measured", fits=True)
    return estimated_memory(case, device_memory_bytes)


def with_job(option: Option, job: Job, *, reference_batch_size: int, rent_per_gpu_hour: float | None) -> Option:
    """The option with the job's time and cost; both None where the job's size, the speed or the price is not known."""
    rate = option.samples_per_s
    if rate is None:
        return option
    num_samples = job.num_samples(reference_batch_size)
    gpu_s_per_sample = divided(option.num_gpus, rate)
    price_per_s = None if rent_per_gpu_hour is None else rent_per_gpu_hour / 3600
    return dataclasses.replace(
        option,
        time_s=None if num_samples is None else divided(num_samples, rate),
        gpu_hours=None if num_samples is None else scaled(gpu_s_per_sample, num_samples / 3600),
        cost=None if num_samples is None or price_per_s is None else scaled(gpu_s_per_sample, num_samples * price_per_s),
        cost_per_epoch=None
        if job.dataset_size is None or price_per_s is None
        else scaled(gpu_s_per_sample, job.dataset_size * price_per_s),
        cost_per_million_samples=None if price_per_s is None else scaled(gpu_s_per_sample, 1e6 * price_per_s),
    )


def _option(row: Measurement, base: Measurement | None, device_memory_bytes: int | None, gpus_per_node: int) -> Option:
    case = row.case
    efficiency = None if base is None else Interval(value=1.0, low=1.0, high=1.0) if row is base else efficiency_of(row, base)
    estimate = estimated_memory(case, device_memory_bytes)
    memory = estimate if row.peak_memory_bytes is None else Memory(num_bytes=row.peak_memory_bytes, source="measured", fits=True)
    return Option(
        case=case,
        source="rehearsed" if case.is_rehearsed else "measured",
        num_gpus=case.world_size,
        num_nodes=math.ceil(case.world_size / (case.gpus_per_node or gpus_per_node)),
        global_batch_size=global_batch_size(case),
        memory=memory,
        samples_per_s=throughput(row),
        speedup=None if efficiency is None else scaled(efficiency, case.world_size),
        efficiency=efficiency,
        note=None if efficiency is not None else "one GPU in this setting was not measured",
    )


def is_of(job: Job, case: BenchCase) -> bool:
    """Whether the case takes the global batch of a job that scales strongly; of a weak one any case does."""
    return job.scaling == "weak" or global_batch_size(case) == job.global_batch_size


def _has_single(case: BenchCase, rows: Sequence[Measurement]) -> bool:
    key = work_key(case, without=_RANKS)
    return any(row.case.strategy == "single" and work_key(row.case, without=_RANKS) == key for row in rows)
