"""Rows from what `gpualloc bench` measured."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase, Measurement
from gpualloc.scaling.records import StepRow


def rows_of_measurements(measurements: Sequence[Measurement]) -> tuple[list[StepRow], int]:
    """(a row for each measurement that can be one, how many cannot).

    Left out: cases that failed or were disturbed, and several ranks on one card, which share what a forecast takes as each GPU's own. The
    cluster is the device, with nodes and links where they were rehearsed: each rehearsed cluster is one of its own, apart from the others
    and from real ranks. A job is the model with strategy, hook and details, since each of them scales in its own way. A single process
    belongs to all the jobs of its model on its cluster: it is the strategy's own baseline.
    """
    usable = [row for row in measurements if _is_usable(row)]
    ways: dict[str, dict[tuple[str, str], None]] = {}
    for row in usable:
        if row.case.strategy != "single":
            ways.setdefault(_key(row), {})[row.case.strategy, row.case.hook] = None
    rows = []
    for row in usable:
        if row.case.strategy != "single":
            rows.append(_row(row, row.case))
        else:
            stands_for = sorted(ways.get(_key(row), {("single", "none"): None}))
            rows += [_row(row, dataclasses.replace(row.case, strategy=strategy, hook=hook)) for strategy, hook in stands_for]
    return rows, len(measurements) - len(usable)


@functools.lru_cache(maxsize=1024)
def gradient_bytes(case: BenchCase) -> int | None:
    """What a step of the case averages over its ranks; None where the parameters of its model cannot be counted."""
    from gpualloc.workloads.memory import count_trained_parameters

    try:
        parameters = count_trained_parameters(case)
    except GpuallocError:
        return None
    width = 1 if "int8" in case.hook else 2 if "16" in case.hook or case.precision.startswith("pure_") else 4
    return None if parameters is None else parameters * width


def input_samples_per_s(row: Measurement, case: BenchCase) -> float | None:
    """What the loaders of a node of `case` deliver of the batches that a step counts once; None for a rehearsed node's unknown cores."""
    if row.input_samples_per_s is None or case.gpus_per_node is not None:
        return None
    return row.input_samples_per_s / case.grad_accum_steps  # a step takes so many of them


def _is_usable(row: Measurement) -> bool:
    return row.status == "ok" and row.step_time_s is not None and not row.disturbances and row.case.ranks_per_gpu == 1


def _key(row: Measurement) -> str:
    details = ",".join(f"{name}={value}" for name, value in sorted(row.case.details().items()))
    return f"{_cluster(row)}|{row.case.model}|{details}"


def _cluster(row: Measurement) -> str:
    device = row.environment.device_name if row.environment else row.case.device
    return " ".join(filter(None, [device, row.case.cluster()]))


def _job(case: BenchCase) -> str:
    strategy = f"{case.strategy}/{case.hook}" if case.strategy == "ddp" else case.strategy
    details = [name if value is True else f"{name}={value}" for name, value in case.details().items()]
    return " ".join([case.model, strategy, *details])


def _row(row: Measurement, case: BenchCase) -> StepRow:
    """The row of a measurement as one of the job of `case`, which is its own but for what a single process stands for."""
    per_node = case.gpus_per_node or case.world_size
    num_nodes = -(-case.world_size // per_node)
    last = case.world_size - (num_nodes - 1) * per_node
    assert row.step_time_s is not None
    exposed = row.exposed_comm_s if case.world_size > 1 else None
    return StepRow(
        cluster=_cluster(row),
        model=_job(case),
        num_nodes=num_nodes,
        num_gpus=case.world_size,
        placement="+".join(map(str, [*[per_node] * (num_nodes - 1), last])),
        per_device_batch_size=case.per_device_batch_size,
        step_time_s=row.step_time_s,
        sync_time_s=None if exposed is None else min(exposed, row.step_time_s),
        image_size_px=case.image_size_px,
        sequence_length=case.sequence_length,
        precision=case.precision,
        gradient_bytes=gradient_bytes(case),
        input_samples_per_s=input_samples_per_s(row, case),
        source="rehearsed" if case.is_rehearsed else "measured",
    )
