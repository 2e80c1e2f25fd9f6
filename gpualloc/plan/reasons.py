"""Why a choice that could be had was not taken: what it would have cost the whole, all others keeping their order and choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpualloc.plan.problem import Problem, Schedule
from gpualloc.plan.scalable import Replacing
from gpualloc.plan.tasks import WorkloadTask, way_shape

_HOUR_S = 3600.0
_EQUAL = 1e-4  # share of the figure below which two are called equal


def why_not(
    problem: Problem, schedule: Schedule, tasks: Sequence[WorkloadTask], currency: str | None
) -> Mapping[tuple[str, tuple[str, int, int]], str]:
    """(workload, shape) -> reason, of the choices that were not taken."""
    replacing = Replacing(problem, schedule)
    reasons: dict[tuple[str, tuple[str, int, int]], str] = {}
    for task in tasks:
        taken = schedule[task.task.name].choice
        for number, ways in enumerate(task.ways):
            if number == taken or len(ways) > 1:
                continue
            found = replacing.place(task.task.name, number)
            text = "a deadline would be missed" if found is None else _compare(problem, schedule, found[1], currency)
            reasons[ways[0].workload, way_shape(ways[0])] = text
    return reasons


def _compare(problem: Problem, chosen: Schedule, other: Schedule, currency: str | None) -> str:
    """In the objective's own figure; where that is the same, in what decides between equals."""
    a, b = _figures(problem, chosen), _figures(problem, other)
    orders = {
        "mean_jct": ("mean_jct_s",),
        "makespan": ("makespan_s", "mean_jct_s"),
        "cost": ("money", "mean_jct_s"),
        "throughput_per_money": ("merit", "mean_jct_s"),
    }
    words = {"mean_jct_s": "mean completion", "makespan_s": "makespan"}
    for name in orders[problem.objective]:
        if abs(b[name] - a[name]) <= _EQUAL * max(abs(a[name]), 1e-12):
            continue
        if name == "money":
            return f"dearer: {b[name]:.2f} {currency or ''} in all instead of {a[name]:.2f}"
        if name == "merit":
            return f"fewer samples for the money: {b[name]:.0%} of the best on average instead of {a[name]:.0%}"
        return f"{words[name]} {_hours(b[name])} instead of {_hours(a[name])}"
    return "no better"


def _figures(problem: Problem, schedule: Schedule) -> dict[str, float]:
    placed = [(task, task.choices[schedule[task.name].choice], schedule[task.name].start_s) for task in problem.tasks]
    return {
        "mean_jct_s": sum(task.weight * start + choice.tail_s for task, choice, start in placed) / problem.total_weight,
        "makespan_s": max(start + choice.duration_s for _, choice, start in placed),
        "money": sum(choice.money for _, choice, _ in placed),
        "merit": sum(choice.merit for _, choice, _ in placed) / problem.total_weight,
    }


def _hours(seconds: float) -> str:
    hours = seconds / _HOUR_S
    return f"{hours:.2f} h" if hours >= 0.1 else f"{seconds:.0f} s"
