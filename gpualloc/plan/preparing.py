"""Workloads, a cluster and what is known of their rates -> the tasks and nodes that the solver chooses among."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from gpualloc.errors import UsageError
from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.offers import DEFAULT_MIN_EFFICIENCY, Offer, find_offers
from gpualloc.plan.problem import NodeGpus, Problem
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Objective, Plan
from gpualloc.plan.running import Progress, find_progress
from gpualloc.plan.solving import Method
from gpualloc.plan.tasks import BuiltTask, WorkloadTask, build_task, free_nodes, make_measuring_task
from gpualloc.plan.workloads import Workload, WorkloadsFile

DEFAULT_HYSTERESIS = 0.05  # of the score: moves of running workloads that gain less are not made

_MAX_DURATION_S = 1e12  # 30,000 years: far beyond it floats no longer tell start times apart
WEIGHS_MONEY: tuple[Objective, ...] = ("cost", "throughput_per_money")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    objective: Objective = "mean_jct"
    seed: int = 0
    is_pessimistic: bool = False
    min_efficiency: float = DEFAULT_MIN_EFFICIENCY
    method: Method = "auto"
    hysteresis: float = DEFAULT_HYSTERESIS
    may_wait: bool = False  # a workload that cannot be placed waits with a reason instead of making the plan infeasible


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything up to the solver."""

    workloads: Mapping[str, Workload]
    cluster: ClusterFile
    built: Mapping[str, BuiltTask]
    measuring: Mapping[str, WorkloadTask]
    stuck: Mapping[str, str]  # workload -> why it has no choice at all
    nodes: tuple[NodeGpus, ...]
    progress: Mapping[str, Progress]
    is_pessimistic: bool


def prepare(
    file: WorkloadsFile, cluster: ClusterFile, knowledge: Knowledge, options: PlanOptions, *, now_utc: datetime, current: Plan | None = None
) -> Prepared:
    """Offers and tasks of all workloads.

    Raises:
        UsageError: the objective weighs money, and what a workload may use has no price; or a workload would take longer than can be
            reckoned with.
    """
    workloads = {workload.name: workload for workload in file.workloads}
    progress = find_progress(workloads, cluster, current, knowledge, now_utc)
    assignments = [each.assignment for each in progress.values() if each.assignment is not None]
    cluster = cluster.with_ours({(device.node, device.index) for assignment in assignments for device in assignment.devices})
    if options.objective in WEIGHS_MONEY:
        _check_prices(cluster, workloads.values(), progress, options.objective)
    built, measuring, stuck = {}, {}, {}
    planned = {each.workload: each for each in current.assignments} if current is not None else {}
    for name, workload in workloads.items():
        offers = find_offers(workload, cluster, knowledge, min_efficiency=options.min_efficiency, is_pessimistic=options.is_pessimistic)
        _check_durations(workload, offers, progress[name], is_pessimistic=options.is_pessimistic)
        built[name] = build_task(workload, offers, cluster, progress[name], planned.get(name), is_pessimistic=options.is_pessimistic)
        if built[name].task.task.choices:
            continue
        total_weight = sum(each.weight for each in workloads.values())
        slot = make_measuring_task(workload, built[name].offers, cluster, total_weight)
        if slot is not None:
            measuring[name] = slot
        else:
            stuck[name] = _why_stuck(built[name].offers)
    return Prepared(
        workloads=workloads,
        cluster=cluster,
        built=built,
        measuring=measuring,
        stuck=stuck,
        nodes=free_nodes(cluster),
        progress=progress,
        is_pessimistic=options.is_pessimistic,
    )


def problem_of(prepared: Prepared, tasks: Sequence[WorkloadTask], options: PlanOptions) -> Problem:
    """What the solver is given."""
    return Problem(tasks=tuple(task.task for task in tasks), nodes=prepared.nodes, objective=options.objective)


def _check_durations(workload: Workload, offers: Sequence[Offer], progress: Progress, *, is_pessimistic: bool) -> None:
    allowed = [offer for offer in offers if offer.refusal is None]
    speeds = [(f"on {offer.num_gpus} x {offer.gpu_type}", offer.speed(is_pessimistic=is_pessimistic)) for offer in allowed]
    if progress.rate is not None:
        speeds.append(("where it runs", progress.rate.low if is_pessimistic else progress.rate.value))
    for where, speed in speeds:
        if progress.samples_left > speed * _MAX_DURATION_S:
            raise UsageError(
                f"{workload.name}: {progress.samples_left:.4g} samples at {speed:.4g} a second {where} take more than "
                f"{_MAX_DURATION_S:.0e} s; correct its rates, or its dataset_size, epochs or steps"
            )


def _check_prices(cluster: ClusterFile, workloads: Iterable[Workload], progress: Mapping[str, Progress], objective: Objective) -> None:
    used = {gpu_type for workload in workloads for gpu_type in workload.gpu_types or cluster.gpu_types}
    used |= {each.assignment.gpu_type for each in progress.values() if each.assignment is not None}
    unpriced = [gpu_type for gpu_type in cluster.gpu_types if gpu_type in used and cluster.price_of(gpu_type) is None]
    if unpriced:
        entry = f"prices: [{{gpu_type: {unpriced[0]}, per_gpu_hour: 3.00, source: whose price list}}]"
        raise UsageError(
            f"objective {objective} weighs money, and the cluster has no price for {', '.join(unpriced)}; give each in the cluster file, "
            f"as in {entry}{'' if cluster.currency else ' and its currency'}, or leave it out of gpu_types"
        )


def _why_stuck(offers: Sequence[Offer]) -> str:
    """The refusal of what came nearest: the last one of its kind, each kind once."""
    kinds: dict[str, str] = {}
    for offer in offers:
        if offer.refusal is not None:
            where = f"{offer.num_gpus} x {offer.gpu_type}"
            kinds.setdefault(offer.refusal.split(":")[0], f"{where}: {offer.refusal}")
    return "; ".join(list(kinds.values())[:3])
