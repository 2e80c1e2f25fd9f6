"""Rows from what `gpualloc bench` measured."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.records import Measurement
from gpualloc.scaling.records import StepRow


def rows_of_measurements(measurements: Sequence[Measurement]) -> tuple[list[StepRow], int]:
    """(a row for each measurement that can be one, how many cannot).

    Left out: cases that failed or were disturbed, and several ranks on one card, which share what a forecast takes as each GPU's own. The
    cluster is the device with its links where they were rehearsed; a job is the model with strategy, hook and details, since each of them
    scales in its own way. A single process belongs to all the jobs of its model: it is the strategy's own baseline.
    """
    usable = [row for row in measurements if _is_usable(row)]
    jobs: dict[str, set[str]] = {}
    for row in usable:
        if row.case.strategy != "single":
            jobs.setdefault(_key(row), set()).add(_job(row))
    rows = []
    for row in usable:
        names = [_job(row)] if row.case.strategy != "single" else sorted(jobs.get(_key(row), {_job(row)}))
        rows += [_row(row, name) for name in names]
    return rows, len(measurements) - len(usable)


def _is_usable(row: Measurement) -> bool:
    return row.status == "ok" and row.step_time_s is not None and not row.disturbances and row.case.ranks_per_gpu == 1


def _key(row: Measurement) -> str:
    details = ",".join(f"{name}={value}" for name, value in sorted(row.case.details().items()))
    return f"{_cluster(row)}|{row.case.model}|{details}"


def _cluster(row: Measurement) -> str:
    return row.environment.device_name if row.environment else row.case.device


def _job(row: Measurement) -> str:
    case = row.case
    strategy = f"{case.strategy}/{case.hook}" if case.strategy == "ddp" else case.strategy
    details = [name if value is True else f"{name}={value}" for name, value in case.details().items()]
    return " ".join([case.model, strategy, *details])


def _row(row: Measurement, name: str) -> StepRow:
    case = row.case
    per_node = case.gpus_per_node or case.world_size
    num_nodes = -(-case.world_size // per_node)
    last = case.world_size - (num_nodes - 1) * per_node
    assert row.step_time_s is not None
    exposed = row.exposed_comm_s if case.world_size > 1 else None
    return StepRow(
        cluster=_cluster(row),
        model=name,
        num_nodes=num_nodes,
        num_gpus=case.world_size,
        placement="+".join(map(str, [*[per_node] * (num_nodes - 1), last])),
        per_device_batch_size=case.per_device_batch_size,
        step_time_s=row.step_time_s,
        sync_time_s=None if exposed is None else min(exposed, row.step_time_s),
        image_size_px=case.image_size_px,
        sequence_length=case.sequence_length,
        precision=case.precision,
        source="rehearsed" if case.is_rehearsed else "measured",
    )
