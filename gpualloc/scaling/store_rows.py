"""Rows from what `gpualloc bench` measured."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.records import Measurement
from gpualloc.scaling.records import StepRow


def rows_of_measurements(measurements: Sequence[Measurement]) -> tuple[list[StepRow], int]:
    """(a row for each measurement that can be one, how many cannot).

    Left out: cases that failed or were disturbed, and several ranks on one card, which share what a forecast takes as each GPU's own. The
    cluster is the device, with its links where they were rehearsed: "NVIDIA H100 in nodes of 8 over nvlink4". A job is the model with
    strategy, hook and details, since each of them scales in its own way. A single process belongs to all the jobs and clusters of its
    model and device: it is their baseline.
    """
    usable = [row for row in measurements if _is_usable(row)]
    series: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for row in usable:
        if row.case.strategy != "single":
            series.setdefault(_baseline(row), set()).add((_cluster(row), _job(row)))
    rows = []
    for row in usable:
        own = {(_cluster(row), _job(row))}
        places = series.get(_baseline(row), own) if row.case.strategy == "single" else own
        rows += [_row(row, cluster, job) for cluster, job in sorted(places)]
    return rows, len(measurements) - len(usable)


def _is_usable(row: Measurement) -> bool:
    return row.status == "ok" and row.step_time_s is not None and not row.disturbances and row.case.ranks_per_gpu == 1


def _baseline(row: Measurement) -> tuple[str, ...]:
    """Equal for a measurement and the single process it is compared with."""
    return _device(row), row.case.model, *(f"{name}={value}" for name, value in sorted(row.case.details().items()))


def _device(row: Measurement) -> str:
    return row.environment.device_name if row.environment else row.case.device


def _cluster(row: Measurement) -> str:
    return f"{_device(row)} in {row.case.cluster()}" if row.case.is_rehearsed else _device(row)


def _job(row: Measurement) -> str:
    case = row.case
    strategy = f"{case.strategy}/{case.hook}" if case.strategy == "ddp" else case.strategy
    details = [name if value is True else f"{name}={value}" for name, value in case.details().items()]
    return " ".join([case.model, strategy, *details])


def _row(row: Measurement, cluster: str, job: str) -> StepRow:
    case = row.case
    per_node = case.gpus_per_node or case.world_size
    num_nodes = -(-case.world_size // per_node)
    last = case.world_size - (num_nodes - 1) * per_node
    assert row.step_time_s is not None
    exposed = row.exposed_comm_s if case.world_size > 1 else None
    return StepRow(
        cluster=cluster,
        model=job,
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
