"""A planning problem solved: by search always, by MILP too where it is small enough; whichever schedule is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpualloc.plan.bound import score_bound
from gpualloc.plan.exact import MAX_TASKS, solve_exact
from gpualloc.plan.problem import Problem, Schedule
from gpualloc.plan.scalable import DEFAULT_PASSES, polish, solve_scalable

Method = Literal["auto", "exact", "scalable"]
METHODS: tuple[Method, ...] = ("auto", "exact", "scalable")
_PROVEN_GAP = 1e-5  # below it a schedule is called optimal


@dataclass(frozen=True, kw_only=True)
class Solved:
    schedule: Schedule | None  # None: no schedule that keeps all deadlines was found
    score: float | None
    gap: float | None  # how far below the score any schedule's could be, as a share of it; None: not known
    method: str  # "exact" or "scalable"
    is_proven_infeasible: bool = False

    @property
    def is_optimal(self) -> bool:
        return self.gap is not None and self.gap <= _PROVEN_GAP


def solve(problem: Problem, *, seed: int, method: Method = "auto", max_passes: int | None = None, with_gap: bool = True) -> Solved:
    """The schedule and what is known of how good it is.

    Args:
        max_passes: of the search; None: as many as usual.
        with_gap: False where nobody asks how good a schedule of the scalable method is.
    """
    if any(not task.choices for task in problem.tasks):
        return Solved(schedule=None, score=None, gap=None, method="scalable", is_proven_infeasible=True)
    found = solve_scalable(problem, seed=seed, max_passes=max_passes or DEFAULT_PASSES)
    if found is not None:
        found = polish(problem, found)
    is_exact = method == "exact" or (method == "auto" and len(problem.tasks) <= MAX_TASKS)
    bounds = []
    if found is not None and problem.tasks and (is_exact or with_gap):
        bounds.append(score_bound(problem, makespan_s=problem.makespan_s(found)))
    if not problem.tasks or not is_exact or _gap(problem, found, bounds, default=1.0) <= _PROVEN_GAP:
        score = None if found is None else problem.score(found)
        return Solved(schedule=found, score=score, gap=_gap(problem, found, bounds), method="exact" if is_exact else "scalable")
    exact = solve_exact(problem, known=found)
    bounds.append(exact.bound)
    if exact.schedule is not None and (found is None or problem.score(exact.schedule) < problem.score(found)):
        found = exact.schedule
    if found is None:
        return Solved(schedule=None, score=None, gap=None, method="exact", is_proven_infeasible=exact.is_infeasible)
    return Solved(schedule=found, score=problem.score(found), gap=_gap(problem, found, bounds), method="exact")


def _gap(problem: Problem, found: Schedule | None, bounds: Sequence[float | None], default: float | None = None) -> Any:
    """By the best of the bounds; `default` where there is none."""
    known = [bound for bound in bounds if bound is not None]
    if found is None or not known:
        return default
    score = problem.score(found)
    return max(0.0, score - max(known)) / max(abs(score), 1e-12)
