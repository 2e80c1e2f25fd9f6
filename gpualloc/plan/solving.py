"""A planning problem solved: by search always, by MILP too where it is small enough; whichever schedule is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpualloc.plan.exact import MAX_TASKS, solve_exact
from gpualloc.plan.problem import Problem, Schedule
from gpualloc.plan.scalable import polish, solve_scalable

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


def solve(problem: Problem, *, seed: int, method: Method = "auto") -> Solved:
    """The schedule and what is known of how good it is."""
    found = solve_scalable(problem, seed=seed)
    if found is not None:
        found = polish(problem, found)
    if not problem.tasks or method == "scalable" or (method == "auto" and len(problem.tasks) > MAX_TASKS):
        score = None if found is None else problem.score(found)
        return Solved(schedule=found, score=score, gap=None, method="scalable")
    exact = solve_exact(problem, known=found)
    if exact.schedule is not None and (found is None or problem.score(exact.schedule) < problem.score(found)):
        found = exact.schedule
    if found is None:
        return Solved(schedule=None, score=None, gap=None, method="exact", is_proven_infeasible=exact.is_infeasible)
    score = problem.score(found)
    gap = None if exact.bound is None else max(0.0, score - exact.bound) / max(abs(score), 1e-12)
    return Solved(schedule=found, score=score, gap=gap, method="exact")
