"""Workloads and a cluster in, a plan out, with what was considered and why it was not chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.devices import Request, deal_devices, num_islands
from gpualloc.plan.fairness import finish_time_fairness
from gpualloc.plan.offers import DEFAULT_MIN_EFFICIENCY, Offer, find_offers
from gpualloc.plan.problem import NodeGpus, Problem, Schedule
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.reasons import why_not
from gpualloc.plan.records import Assignment, MeasuringSlot, Money, Objective, Plan, Waiting
from gpualloc.plan.running import Progress, find_progress
from gpualloc.plan.solving import Method, Solved, solve
from gpualloc.plan.tasks import (
    BuiltTask,
    Way,
    WorkloadTask,
    build_task,
    free_nodes,
    make_measuring_task,
    measuring_command,
    shared_tasks,
    sharing_on,
    way_shape,
)
from gpualloc.plan.workloads import Workload, WorkloadsFile

DEFAULT_HYSTERESIS = 0.05  # of the score: moves of running workloads that gain less are not made
_MAX_SHARED_PAIRS = 20  # tried; each is a problem of its own
_HOUR_S = 3600.0


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
class Considered:
    """A row of the table."""

    offer: Offer
    is_chosen: bool
    duration_s: float | None  # alone, from its start
    money: float | None
    why_not: str | None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan and how good it is."""

    plan: Plan
    considered: tuple[Considered, ...]
    score: float | None
    gap: float | None
    method: str
    mean_jct_s: float | None
    makespan_s: float | None
    cost: Money | None
    fairness: Mapping[str, float]  # workload -> rho of gpualloc.plan.fairness
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Impossible:
    """Why there is no plan."""

    reasons: tuple[str, ...]  # by workload, where each alone says why
    considered: tuple[Considered, ...]
    is_proven: bool


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
    """Offers and tasks of all workloads."""
    workloads = {workload.name: workload for workload in file.workloads}
    progress = find_progress(workloads, cluster, current, knowledge, now_utc)
    built, measuring, stuck = {}, {}, {}
    for name, workload in workloads.items():
        offers = find_offers(workload, cluster, knowledge, min_efficiency=options.min_efficiency, is_pessimistic=options.is_pessimistic)
        built[name] = build_task(workload, offers, cluster, progress[name], is_pessimistic=options.is_pessimistic)
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
        nodes=free_nodes(cluster, progress),
        progress=progress,
        is_pessimistic=options.is_pessimistic,
    )


def make_plan(
    file: WorkloadsFile, cluster: ClusterFile, knowledge: Knowledge, options: PlanOptions, *, now_utc: datetime, current: Plan | None = None
) -> Planned | Impossible:
    """The plan, or why there is none.

    Args:
        now_utc: the plan's time 0.
        current: what runs now; its workloads stay where they are unless moving them gains more than it costs and `options.hysteresis`.
    """
    prepared = prepare(file, cluster, knowledge, options, now_utc=now_utc, current=current)
    ready = [built.task for built in prepared.built.values() if built.task.task.choices]
    tasks = [*sharing_on(ready, prepared.workloads), *prepared.measuring.values()]
    if prepared.stuck and not options.may_wait:
        reasons = tuple(f"{name}: {reason}" for name, reason in prepared.stuck.items())
        return Impossible(reasons=reasons, considered=_all_refused(prepared), is_proven=True)
    late: dict[str, str] = {}
    tasks, solved = _solve_with_sharing(file, prepared, tasks, options)
    while solved.schedule is None:
        if not options.may_wait:
            return Impossible(reasons=(), considered=_all_refused(prepared), is_proven=solved.is_proven_infeasible)
        bound = [task for task in tasks if any(choice.latest_start_s < float("inf") for choice in task.task.choices)]
        loser = min(bound, key=lambda task: (task.task.weight, -max(choice.latest_start_s for choice in task.task.choices), task.task.name))
        late[loser.task.name] = "its deadline cannot be kept beside the others'"
        tasks = [task for task in tasks if task is not loser]
        solved = _solve(prepared, tasks, options)
    if current is not None:
        tasks, solved = _with_hysteresis(prepared, tasks, solved, options)
    return _finished(prepared, tasks, solved, options, now_utc, {**prepared.stuck, **late})


def _why_stuck(offers: Sequence[Offer]) -> str:
    """The refusal of what came nearest: the last one of its kind, each kind once."""
    kinds: dict[str, str] = {}
    for offer in offers:
        if offer.refusal is not None:
            where = f"{offer.num_gpus} x {offer.gpu_type}"
            kinds.setdefault(offer.refusal.split(":")[0], f"{where}: {offer.refusal}")
    return "; ".join(list(kinds.values())[:3])


def _problem(prepared: Prepared, tasks: Sequence[WorkloadTask], options: PlanOptions) -> Problem:
    return Problem(tasks=tuple(task.task for task in tasks), nodes=prepared.nodes, objective=options.objective)


def _solve(prepared: Prepared, tasks: Sequence[WorkloadTask], options: PlanOptions) -> Solved:
    return solve(_problem(prepared, tasks, options), seed=options.seed, method=options.method)


def _solve_with_sharing(
    file: WorkloadsFile, prepared: Prepared, tasks: Sequence[WorkloadTask], options: PlanOptions
) -> tuple[list[WorkloadTask], Solved]:
    """Pairs that may share a GPU are made to, one after the other, as long as the score gets better."""
    kept, shared = list(tasks), set[str]()
    solved = _solve(prepared, kept, options)
    for entry in file.sharing[:_MAX_SHARED_PAIRS]:
        a, b = entry.workloads
        if {a, b} & shared or any(prepared.progress[name].assignment is not None for name in (a, b)):
            continue
        pair = shared_tasks(prepared.built[a], prepared.built[b], entry, prepared.workloads, prepared.cluster)
        if pair is None:
            continue
        trial = [task for task in kept if task.task.name not in (a, b)] + [pair]
        found = _solve(prepared, trial, options)
        if found.score is not None and (solved.score is None or found.score < solved.score - 1e-9 * abs(solved.score)):
            kept, solved = trial, found
            shared |= {a, b}
    return kept, solved


def _with_hysteresis(
    prepared: Prepared, tasks: list[WorkloadTask], solved: Solved, options: PlanOptions
) -> tuple[list[WorkloadTask], Solved]:
    """What runs is moved where that gains enough: all moves together, and each by itself its part of it."""
    assert solved.schedule is not None
    moved = _moved(tasks, solved.schedule)
    if not moved:
        return tasks, solved
    staying = [_staying(task) for task in tasks]
    still = _solve(prepared, staying, options)
    assert solved.score is not None
    if still.score is not None and still.score - solved.score <= options.hysteresis * abs(still.score):
        return staying, still
    share = options.hysteresis * abs(solved.score) / len(moved)
    for name in moved:
        trial = [_staying(task) if task.task.name == name else task for task in tasks]
        found = _solve(prepared, trial, options)
        assert solved.score is not None
        if found.score is not None and found.score - solved.score <= share:
            tasks, solved = trial, found
    return tasks, solved


def _moved(tasks: Sequence[WorkloadTask], schedule: Schedule) -> list[str]:
    """Tasks that run now and would not go on as they are."""
    return [
        task.task.name
        for task in tasks
        if any(ways[0].assignment is not None for ways in task.ways) and task.ways[schedule[task.task.name].choice][0].assignment is None
    ]


def _staying(task: WorkloadTask) -> WorkloadTask:
    stays = [number for number, ways in enumerate(task.ways) if ways[0].assignment is not None]
    return task.only(stays) if stays else task


def _finished(
    prepared: Prepared, tasks: Sequence[WorkloadTask], solved: Solved, options: PlanOptions, now_utc: datetime, waits: Mapping[str, str]
) -> Planned:
    schedule = solved.schedule
    assert schedule is not None
    requests, chosen = [], {}
    for task in tasks:
        slot = schedule[task.task.name]
        choice, ways = task.task.choices[slot.choice], task.ways[slot.choice]
        kept = ways[0].assignment.devices if ways[0].assignment is not None else ()
        requests.append(
            Request(
                name=task.task.name,
                nodes=slot.nodes,
                gpus_per_node=choice.gpus_per_node,
                start_s=slot.start_s,
                finish_s=slot.start_s + choice.duration_s,
                kept=kept,
            )
        )
        chosen[task.task.name] = (slot, ways)
    devices = deal_devices(prepared.cluster, requests)
    assignments, measuring, notes = [], [], []
    for name, (slot, ways) in chosen.items():
        if name.startswith("measure:"):
            way = ways[0]
            assert way.offer is not None
            workload = prepared.workloads[way.workload]
            kind = prepared.cluster.nodes_of(way.offer.gpu_type)[0].device
            measuring.append(
                MeasuringSlot(
                    workload=way.workload,
                    devices=devices[name],
                    gpu_type=way.offer.gpu_type,
                    command=measuring_command(workload, way.offer, kind),
                    start_s=slot.start_s,
                    finish_s=slot.start_s + way.duration_s,
                    reason=way.offer.refusal or "its rate is unknown",
                )
            )
            continue
        for way in ways:
            others = tuple(each.workload for each in ways if each is not way)
            assignments.append(_assignment(prepared, way, slot.start_s, devices[name], others))
        for node in {device.node for device in devices[name]}:
            here = [device.index for device in devices[name] if device.node == node]
            islands = num_islands(prepared.cluster.node(node), here)
            if islands > 1:
                notes.append(f"{name} lies over {islands} NVLink islands of {node}: its rate may be lower than planned")
    assignments.sort(key=lambda each: (each.start_s, each.workload))
    notes += [
        f"{name} should have ended by the current plan; it counts as nearly done" for name, p in prepared.progress.items() if p.is_late
    ]
    plan = Plan(
        created_at_utc=now_utc.isoformat(timespec="seconds"),
        objective=options.objective,
        seed=options.seed,
        cluster=prepared.cluster.planned(),
        assignments=tuple(assignments),
        waiting=tuple(
            [Waiting(workload=name, reason=reason) for name, reason in waits.items()]
            + [Waiting(workload=name, reason="it is measured first, then plan again") for name in prepared.measuring]
        ),
        measuring=tuple(sorted(measuring, key=lambda each: (each.start_s, each.workload))),
        is_pessimistic=options.is_pessimistic,
    )
    finish_s = {each.workload: each.finish_s for each in assignments}
    weights = {name: prepared.workloads[name].weight for name in finish_s}
    total_weight = sum(weights.values())
    costs = [each.cost.value for each in assignments if each.cost is not None]
    currency = prepared.cluster.currency
    return Planned(
        plan=plan,
        considered=_considered(prepared, tasks, solved, options),
        score=solved.score,
        gap=solved.gap,
        method=solved.method,
        mean_jct_s=sum(weights[name] * end for name, end in finish_s.items()) / total_weight if total_weight else None,
        makespan_s=max(finish_s.values(), default=None),
        cost=Money(value=_sum_once(assignments), currency=currency) if costs and len(costs) == len(assignments) and currency else None,
        fairness=finish_time_fairness({name: prepared.built[name].task.task.choices for name in finish_s}, finish_s, prepared.nodes),
        notes=tuple(notes),
    )


def _sum_once(assignments: Sequence[Assignment]) -> float:
    return sum(each.cost.value for each in assignments if each.cost is not None)


def _assignment(prepared: Prepared, way: Way, start_s: float, devices: tuple[object, ...], others: tuple[str, ...]) -> Assignment:
    workload, progress = prepared.workloads[way.workload], prepared.progress[way.workload]
    gpu_type, _, num_gpus = way_shape(way)
    price, currency = prepared.cluster.price_of(gpu_type), prepared.cluster.currency
    share = num_gpus / (1 + len(others))
    cost = None if price is None or currency is None else Money(value=price * share * way.duration_s / _HOUR_S, currency=currency)
    common = {
        "start_s": start_s,
        "finish_s": start_s + way.duration_s,
        "samples_total": workload.total_samples,
        "samples_done": workload.total_samples - progress.samples_left,
        "cost": cost,
        "command": None if workload.command is None else tuple(workload.command),
        "environment": dict(workload.environment),
        "max_restarts": workload.max_restarts,
        "checkpoint": workload.checkpoint,
        "shares_gpu_with": others,
    }
    if way.assignment is not None:
        assert progress.rate is not None
        return dataclasses.replace(way.assignment, samples_per_s=progress.rate, **common)  # type: ignore[arg-type]
    offer = way.offer
    assert offer is not None
    assert offer.rate is not None
    alone_s = progress.samples_left / offer.speed(is_pessimistic=prepared.is_pessimistic) + way.restart_s
    slower = alone_s / way.duration_s if others else 1.0  # on average until its end
    rate = dataclasses.replace(offer.rate, value=offer.rate.value * slower, low=offer.rate.low * slower, high=offer.rate.high * slower)
    assert offer.strategy is not None
    assert offer.precision is not None
    return Assignment(
        workload=workload.name,
        devices=devices,  # type: ignore[arg-type]
        gpu_type=offer.gpu_type,
        num_gpus=offer.num_gpus,
        num_nodes=offer.num_nodes,
        strategy=offer.strategy,
        precision=offer.precision,
        hook=offer.hook,
        per_device_batch_size=offer.per_device_batch_size,
        grad_accum_steps=offer.grad_accum_steps,
        learning_rate_factor=offer.learning_rate_factor,
        samples_per_s=rate,
        memory_gib=offer.memory_gib,
        model=workload.model,
        kind=workload.kind,
        image_size_px=workload.image_size_px,
        sequence_length=workload.sequence_length,
        tuning=workload.tuning,
        **common,  # type: ignore[arg-type]
    )


def _all_refused(prepared: Prepared) -> tuple[Considered, ...]:
    return tuple(
        Considered(offer=offer, is_chosen=False, duration_s=None, money=None, why_not=offer.refusal)
        for built in prepared.built.values()
        for offer in built.offers
    )


def _considered(prepared: Prepared, tasks: Sequence[WorkloadTask], solved: Solved, options: PlanOptions) -> tuple[Considered, ...]:
    """Every offer, with the chosen one marked and the others' reasons."""
    assert solved.schedule is not None
    reasons = why_not(_problem(prepared, tasks, options), solved.schedule, tasks, prepared.cluster.currency)
    way_of = {
        way.workload: way
        for task in tasks
        for way in task.ways[solved.schedule[task.task.name].choice]
        if way.offer is None or way.offer.refusal is None
    }
    rows = []
    for name, built in prepared.built.items():
        taken = way_of.get(name)
        for offer in built.offers:
            shape_taken = None if taken is None else way_shape(taken)
            is_chosen = taken is not None and offer.refusal is None and offer.shape == shape_taken
            choice = next(
                (
                    choice
                    for choice, ways in zip(built.task.task.choices, built.task.ways, strict=True)
                    if way_shape(ways[0]) == offer.shape
                ),
                None,
            )
            reason = offer.refusal
            if reason is None and not is_chosen:
                reason = reasons.get(
                    (name, offer.shape), "shares a GPU instead" if taken is not None else prepared.stuck.get(name, "waits")
                )
            rows.append(
                Considered(
                    offer=offer,
                    is_chosen=is_chosen,
                    duration_s=None if choice is None else choice.duration_s,
                    money=None if choice is None or prepared.cluster.price_of(offer.gpu_type) is None else choice.money,
                    why_not=reason,
                )
            )
    return tuple(rows)
