"""Workloads and a cluster in, a plan out: solved once, then again with GPUs shared, deadlines given up and running workloads left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime

from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.outcome import Impossible, Planned, all_refused, compose_plan
from gpualloc.plan.preparing import PlanOptions, Prepared, prepare, problem_of
from gpualloc.plan.problem import Schedule
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Plan
from gpualloc.plan.solving import Solved, solve
from gpualloc.plan.tasks import (
    WorkloadTask,
    shared_tasks,
    sharing_on,
)
from gpualloc.plan.workloads import WorkloadsFile

_MAX_SHARED_PAIRS = 20  # tried; each is a problem of its own


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
        return Impossible(reasons=reasons, considered=all_refused(prepared), is_proven=True)
    late: dict[str, str] = {}
    notes: list[str] = []
    tasks, solved = _solve_with_sharing(file, prepared, tasks, options)
    while solved.schedule is None:
        if not options.may_wait:
            return Impossible(reasons=(), considered=all_refused(prepared), is_proven=solved.is_proven_infeasible)
        loser = min(tasks, key=_order_of_losers)
        names = [way.workload for way in loser.ways[0]]
        tasks = [task for task in tasks if task is not loser]
        if _runs(loser):
            tasks.append(_unbound(loser))
            notes += [f"{name} cannot keep its deadline or budget beside the others, and goes on" for name in names]
        else:
            late |= dict.fromkeys(names, "its deadline cannot be kept beside the others'")
        solved = _solve(prepared, tasks, options)
    if current is not None:
        tasks, solved = _with_hysteresis(prepared, tasks, solved, options)
    return compose_plan(prepared, tasks, solved, options, now_utc, {**prepared.stuck, **late}, notes)


def _order_of_losers(task: WorkloadTask) -> tuple[bool, bool, float, float, str]:
    """Who gives way where not all deadlines can be kept: what waits with a deadline, the least important first; then what runs."""
    latest_s = max(choice.latest_start_s for choice in task.task.choices)
    is_bound = any(choice.latest_start_s < float("inf") for choice in task.task.choices)
    return not is_bound, _runs(task), task.task.weight, -latest_s, task.task.name


def _runs(task: WorkloadTask) -> bool:
    return any(ways[0].assignment is not None for ways in task.ways)


def _unbound(task: WorkloadTask) -> WorkloadTask:
    """It stays where it is, whatever its deadline and budget."""
    stays = _staying(task)
    choices = tuple(dataclasses.replace(choice, latest_start_s=float("inf")) for choice in stays.task.choices)
    return WorkloadTask(task=dataclasses.replace(stays.task, choices=choices), ways=stays.ways)


def _solve(prepared: Prepared, tasks: Sequence[WorkloadTask], options: PlanOptions) -> Solved:
    return solve(problem_of(prepared, tasks, options), seed=options.seed, method=options.method)


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
    return [task.task.name for task in tasks if _runs(task) and task.ways[schedule[task.task.name].choice][0].assignment is None]


def _staying(task: WorkloadTask) -> WorkloadTask:
    stays = [number for number, ways in enumerate(task.ways) if ways[0].assignment is not None]
    return task.only(stays) if stays else task
