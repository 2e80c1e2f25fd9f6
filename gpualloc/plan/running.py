"""What runs by the current plan: where, how far it came, and how fast it goes by what was measured meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from gpualloc.errors import UsageError
from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.rates import Knowledge, find_rates
from gpualloc.plan.records import Assignment, Plan, PlannedRate
from gpualloc.plan.workloads import Workload

_LEAST_LEFT = 0.01  # of a workload that should have ended and is still in the file: it ends when it is taken out, or says how far it is


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A workload at the time of planning."""

    samples_left: float
    assignment: Assignment | None = None  # where it runs; None: it does not
    rate: PlannedRate | None = None  # there
    is_late: bool = False  # it should have ended


def elapsed_s(plan: Plan, now_utc: datetime) -> float:
    """Since the plan was made.

    Raises:
        UsageError: the plan is of a later time than now, or its time is not one.
    """
    try:
        elapsed = (now_utc - datetime.fromisoformat(plan.created_at_utc)).total_seconds()
    except (ValueError, TypeError) as error:
        raise UsageError(f"the current plan has created_at_utc {plan.created_at_utc!r}, which is no time with a time zone") from error
    if elapsed < 0:
        raise UsageError(
            f"the current plan is of {plan.created_at_utc}, which is {-elapsed:.0f} s ahead; set the clock, or leave --current out"
        )
    return elapsed


def find_progress(
    workloads: Mapping[str, Workload], cluster: ClusterFile, current: Plan | None, knowledge: Knowledge, now_utc: datetime
) -> dict[str, Progress]:
    """Workload -> progress, of all."""
    result = {
        name: Progress(samples_left=max(workload.total_samples - (workload.samples_done or 0.0), 0.0))
        for name, workload in workloads.items()
    }
    if current is None:
        return result
    elapsed = elapsed_s(current, now_utc)
    nodes = {node.name: node for node in cluster.nodes}
    for assignment in current.assignments:
        workload = workloads.get(assignment.workload)
        if workload is None or assignment.start_s > elapsed:
            continue
        is_here = all(device.node in nodes and device.index < nodes[device.node].num_gpus for device in assignment.devices)
        is_reserved = any(nodes[d.node].unavailable.get(d.index) == "reserved" for d in assignment.devices) if is_here else False
        rate = current_rate(workload, cluster, assignment, knowledge) if is_here else assignment.samples_per_s
        done = assignment.samples_done + (elapsed - assignment.start_s) * rate.value
        if workload.samples_done is not None:
            done = workload.samples_done
        total = workload.total_samples
        is_late = workload.samples_done is None and done > total * (1 - _LEAST_LEFT)
        left = max(total - done, total * _LEAST_LEFT if is_late else 0.0)
        runs = is_here and not is_reserved
        result[workload.name] = Progress(
            samples_left=left, assignment=assignment if runs else None, rate=rate if runs else None, is_late=is_late
        )
    return result


def current_rate(workload: Workload, cluster: ClusterFile, assignment: Assignment, knowledge: Knowledge) -> PlannedRate:
    """As measured with the settings that it runs with, else as planned."""
    asked = dataclasses.replace(knowledge, forecaster=None)
    if assignment.gpu_type not in cluster.gpu_types:
        return assignment.samples_per_s
    shape = (assignment.num_nodes, assignment.num_gpus)
    for known in find_rates(workload.model_copy(update={"rates": []}), cluster, assignment.gpu_type, [shape], asked):
        settings = (known.strategy, known.precision, known.hook, known.per_device_batch_size)
        if settings == (assignment.strategy, assignment.precision, assignment.hook, assignment.per_device_batch_size):
            from gpualloc.plan.offers import num_data_ranks

            ranks = num_data_ranks(workload, cluster.nodes_of(assignment.gpu_type)[0], known)
            global_size = ranks * assignment.per_device_batch_size * assignment.grad_accum_steps
            return known.samples_per_s(assignment.grad_accum_steps, global_size)
    return assignment.samples_per_s
