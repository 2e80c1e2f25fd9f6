"""What the solver chose, as a plan for people and launchers: who gets which devices when, at what cost, and why not otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from gpualloc.plan.devices import Request, deal_devices, num_islands
from gpualloc.plan.fairness import finish_time_fairness
from gpualloc.plan.offers import Offer
from gpualloc.plan.preparing import PlanOptions, Prepared, problem_of
from gpualloc.plan.reasons import why_not
from gpualloc.plan.records import Assignment, MeasuringSlot, Money, Plan, Waiting
from gpualloc.plan.solving import Solved
from gpualloc.plan.tasks import Way, WorkloadTask, measuring_command, way_shape

_HOUR_S = 3600.0


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


def compose_plan(
    prepared: Prepared,
    tasks: Sequence[WorkloadTask],
    solved: Solved,
    options: PlanOptions,
    now_utc: datetime,
    waits: Mapping[str, str],
    notes: Sequence[str] = (),
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
    assignments, measuring, notes = [], [], list(notes)
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
        created_at_utc=now_utc.isoformat(timespec="milliseconds"),
        objective=options.objective,
        seed=options.seed,
        cluster=prepared.cluster.planned(),
        assignments=tuple(assignments),
        waiting=tuple(
            Waiting(
                workload=name, reason=reason, samples_done=prepared.workloads[name].total_samples - prepared.progress[name].samples_left
            )
            for name, reason in [*waits.items(), *((name, "it is measured first, then plan again") for name in prepared.measuring)]
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


def all_refused(prepared: Prepared) -> tuple[Considered, ...]:
    return tuple(
        Considered(offer=offer, is_chosen=False, duration_s=None, money=None, why_not=offer.refusal)
        for built in prepared.built.values()
        for offer in built.offers
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


def _considered(prepared: Prepared, tasks: Sequence[WorkloadTask], solved: Solved, options: PlanOptions) -> tuple[Considered, ...]:
    """Every offer, with the chosen one marked and the others' reasons."""
    assert solved.schedule is not None
    reasons = why_not(problem_of(prepared, tasks, options), solved.schedule, tasks, prepared.cluster.currency)
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
