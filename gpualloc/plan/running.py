"""What runs by the current plan: where, how far it came, and how fast it goes by what was measured meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
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
    has_started: bool = False  # by the current plan: to run elsewhere or again it has to restart


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
    """Workload -> progress, of all.

    Raises:
        UsageError: the current plan's time or rates cannot be.
    """
    result = {
        name: Progress(samples_left=max(workload.total_samples - (workload.samples_done or 0.0), 0.0))
        for name, workload in workloads.items()
    }
    if current is None:
        return result
    elapsed = elapsed_s(current, now_utc)
    still = next((each.workload for each in current.assignments if not min(each.samples_per_s.value, each.samples_per_s.low) > 0), None)
    if still is not None:
        raise UsageError(f"the rate of {still} in the current plan is not above 0; correct it, or leave --current out")
    nodes = {node.name: node for node in cluster.nodes}
    stopped = {each.workload: each.samples_done for each in current.waiting}
    started = started_workloads(current, workloads, elapsed)
    for assignment in current.assignments:
        workload = workloads.get(assignment.workload)
        if workload is None:
            continue
        if workload.name not in started:
            stopped[workload.name] = assignment.samples_done
            continue
        devices = [(device.node, device.index) for device in assignment.devices]
        is_here = all(
            node in nodes and nodes[node].gpu_type == assignment.gpu_type and index < nodes[node].num_gpus for node, index in devices
        )
        is_reserved = is_here and any(nodes[node].unavailable.get(index) == "reserved" for node, index in devices)
        rate = current_rate(workload, cluster, assignment, knowledge) if is_here else assignment.samples_per_s
        training_s = max(elapsed - assignment.start_s - _restart_s(assignment, is_pessimistic=current.is_pessimistic), 0.0)
        done = assignment.samples_done + training_s * rate.value
        if workload.samples_done is not None:
            done = workload.samples_done
        total = workload.total_samples
        is_late = workload.samples_done is None and done > total * (1 - _LEAST_LEFT)
        left = max(total - done, total * _LEAST_LEFT if is_late else 0.0)
        runs = is_here and not is_reserved
        result[workload.name] = Progress(
            samples_left=left,
            assignment=assignment if runs else None,
            rate=rate if runs else None,
            is_late=is_late,
            has_started=True,
        )
    for name, done in stopped.items():
        workload = workloads.get(name)
        if workload is not None and workload.samples_done is None:
            left = max(workload.total_samples - done, workload.total_samples * _LEAST_LEFT)
            result[name] = Progress(samples_left=left, has_started=done > 0)
    return result


def started_workloads(current: Plan, unfinished: Collection[str], elapsed_s: float) -> set[str]:
    """Those of `unfinished` whose start has come by the current plan and whose GPUs no other one still holds, which is late."""
    holders: dict[tuple[str, int], set[str]] = {}
    started = set()
    for assignment in sorted(current.assignments, key=lambda each: each.start_s):
        devices = [(device.node, device.index) for device in assignment.devices]
        before_it = set[str]().union(*(holders.get(device, set()) for device in devices)) - set(assignment.shares_gpu_with)
        if assignment.workload in unfinished and assignment.start_s <= elapsed_s and not before_it:
            started.add(assignment.workload)
            for device in devices:
                holders.setdefault(device, set()).add(assignment.workload)
    return started


def _restart_s(assignment: Assignment, *, is_pessimistic: bool) -> float:
    """What of the planned time is for its (re)start."""
    if assignment.samples_total is None:
        return 0.0
    rate = assignment.samples_per_s
    planned_s = (assignment.samples_total - assignment.samples_done) / (rate.low if is_pessimistic else rate.value)
    return max(assignment.finish_s - assignment.start_s - planned_s, 0.0)


def current_rate(workload: Workload, cluster: ClusterFile, assignment: Assignment, knowledge: Knowledge) -> PlannedRate:
    """As measured with the settings that it runs with, else as its table has it now, else as planned."""
    asked = dataclasses.replace(knowledge, forecaster=None)
    if assignment.gpu_type not in cluster.gpu_types:
        return assignment.samples_per_s
    shape = (assignment.num_nodes, assignment.num_gpus)
    measured = find_rates(workload.model_copy(update={"rates": []}), cluster, assignment.gpu_type, [shape], asked)
    tables = [] if assignment.shares_gpu_with else find_rates(workload, cluster, assignment.gpu_type, [shape], asked)
    for known in (*measured, *tables):
        is_batch = known.per_device_batch_size in (None, assignment.per_device_batch_size)
        if is_batch and (known.strategy, known.precision, known.hook) == (assignment.strategy, assignment.precision, assignment.hook):
            from gpualloc.plan.offers import num_data_ranks

            ranks = num_data_ranks(workload, cluster.nodes_of(assignment.gpu_type)[0], known)
            global_size = ranks * assignment.per_device_batch_size * assignment.grad_accum_steps
            return known.samples_per_s(assignment.grad_accum_steps, global_size)
    return assignment.samples_per_s
