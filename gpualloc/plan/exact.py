"""The planning problem as a mixed-integer linear program, solved by HiGHS through scipy.

Continuous time. GPUs flow from task to task, as in Artigues, Michelon, Reusser 2003 (European Journal of Operational Research 149, 2,
"Insertion techniques for static and dynamic resource-constrained project scheduling"), per node and with several modes:

    x[j,c]        task j runs as choice c                    sum_c x = 1
    u[j,c,n]      choice c of j uses node n                  sum_n u = num_nodes x
    o[i,j]        j starts after i has ended                 o[i,j] + o[j,i] <= 1
    f[i,j,n]      GPUs of node n that j takes over from i    f <= size o;   to j and from j: sum_c gpus_per_node u[j,c,n]
    S[j]          start                                      S[j] >= S[i] + duration of i - M (1 - o[i,j])

Nothing is rounded to a grid, and the interchangeable GPUs of a node bring no symmetry. It is for a handful of tasks: the bound of the
relaxation is weak, so that gpualloc.plan.bound has the better one where this is stopped after `max_nodes` branch-and-bound nodes. Valid
inequalities on GPU time per type help the makespan, and the score of the scalable method's schedule cuts off what is worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpualloc.plan.integer_program import milp
from gpualloc.plan.problem import Problem, Schedule, Slot
from gpualloc.plan.scalable import Timeline

MAX_TASKS = 5  # so many close the gap in seconds (30 random instances of tests/plan, 2026-11-26), 6 and more often not in a minute
_MAX_NODES = 200_000
_TIME_LIMIT_S = 60.0  # beside the number of nodes, which is what makes the result the same everywhere


@dataclass(frozen=True, kw_only=True)
class ExactResult:
    schedule: Schedule | None  # None: nothing better than the schedule given was found, or no schedule at all
    bound: float | None  # no schedule's score is below it
    is_infeasible: bool  # proven: none exists


class _Rows:
    """Linear constraints, row by row."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, terms: Sequence[tuple[int, float]], low: float, high: float) -> None:
        row = len(self.low)
        self.entries += [(row, column, value) for column, value in terms]
        self.low.append(low)
        self.high.append(high)


def solve_exact(
    problem: Problem, *, known: Schedule | None = None, max_nodes: int = _MAX_NODES, time_limit_s: float = _TIME_LIMIT_S
) -> ExactResult:
    """The best schedule, or the best found, with a bound.

    Args:
        known: a schedule to beat.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.sparse import csr_matrix

    tasks, infinity = problem.tasks, float("inf")
    if any(not task.choices for task in tasks):
        return ExactResult(schedule=None, bound=None, is_infeasible=True)
    known_score = None if known is None else problem.score(known)
    last_s = problem.horizon_s + max((choice.start_s or 0.0 for task in tasks for choice in task.choices), default=0.0)
    time_scale = max(last_s / max(1, len(tasks)), 1e-9)  # solvers like figures near 1
    big = last_s / time_scale
    rows, low, high, integer = _Rows(), [], [], []
    cost: list[float] = []

    def variable(upper: float, *, is_integer: bool, price: float = 0.0, lower: float = 0.0) -> int:
        low.append(lower)
        high.append(upper)
        integer.append(1 if is_integer else 0)
        cost.append(price)
        return len(low) - 1

    of_jct, of_makespan, of_money, of_merit = problem.scales
    start, x, use = [], {}, {}
    for j, task in enumerate(tasks):
        start.append(variable(big, is_integer=False, price=of_jct * task.weight / problem.total_weight * time_scale))
        for c, choice in enumerate(task.choices):
            price = of_jct * choice.tail_s / problem.total_weight + of_money * choice.money - of_merit * choice.merit / problem.total_weight
            names = problem.node_names(choice)
            x[j, c] = variable(1 if len(names) >= choice.num_nodes else 0, is_integer=True, price=price)
            if choice.num_nodes == len(names):
                use.update({(j, c, name): x[j, c] for name in names})
            else:
                use.update({(j, c, name): variable(1, is_integer=True) for name in names})
                rows.add([*((use[j, c, name], 1.0) for name in names), (x[j, c], -float(choice.num_nodes))], 0.0, 0.0)
                if choice.num_nodes > 1:
                    for name in names:
                        rows.add([(use[j, c, name], 1.0), (x[j, c], -1.0)], -infinity, 0.0)
            if choice.latest_start_s < last_s:
                rows.add([(start[j], 1.0), (x[j, c], big - choice.latest_start_s / time_scale)], -infinity, big)
            if choice.start_s is not None:
                at = choice.start_s / time_scale
                rows.add([(start[j], 1.0), (x[j, c], big - at)], -infinity, big)
                rows.add([(start[j], 1.0), (x[j, c], -at)], 0.0, infinity)
        rows.add([(x[j, c], 1.0) for c in range(len(task.choices))], 1.0, 1.0)

    def duration(j: int) -> list[tuple[int, float]]:
        return [(x[j, c], choice.duration_s / time_scale) for c, choice in enumerate(tasks[j].choices)]

    order = {(i, j): variable(1, is_integer=True) for i in range(len(tasks)) for j in range(len(tasks)) if i != j}
    for (i, j), o in order.items():
        if i < j:
            rows.add([(o, 1.0), (order[j, i], 1.0)], 0.0, 1.0)
        span = big + max(choice.duration_s for choice in tasks[i].choices) / time_scale
        rows.add([(start[j], 1.0), (start[i], -1.0), *((column, -value) for column, value in duration(i)), (o, -span)], -span, infinity)
        for k in range(len(tasks)):
            if k not in (i, j):
                rows.add([(o, 1.0), (order[j, k], 1.0), (order[i, k], -1.0)], -infinity, 1.0)
    for node in problem.nodes:
        users = [j for j in range(len(tasks)) if any((j, c, node.name) in use for c in range(len(tasks[j].choices)))]
        demand = {
            j: [
                (use[j, c, node.name], float(choice.gpus_per_node)) for c, choice in enumerate(tasks[j].choices) if (j, c, node.name) in use
            ]
            for j in users
        }
        size = float(node.num_gpus)
        flow: dict[tuple[int, int], int] = {}
        for i in users:
            for j in users:
                if i != j:
                    flow[i, j] = variable(size, is_integer=False)
                    rows.add([(flow[i, j], 1.0), (order[i, j], -size)], -infinity, 0.0)
        first = {j: variable(size, is_integer=False) for j in users}  # GPUs that nobody used before
        rows.add([(first[j], 1.0) for j in users], 0.0, size)
        for j in users:
            taken = [(column, -value) for column, value in demand[j]]
            rows.add([(first[j], 1.0), *((flow[i, j], 1.0) for i in users if i != j), *taken], 0.0, 0.0)
            rows.add([*((flow[j, k], 1.0) for k in users if k != j), *taken], -infinity, 0.0)
    if of_makespan > 0:
        end = variable(infinity, is_integer=False, price=of_makespan * time_scale)
        for j in range(len(tasks)):
            rows.add([(end, 1.0), (start[j], -1.0), *((column, -value) for column, value in duration(j))], 0.0, infinity)
        for gpu_type in sorted({node.gpu_type for node in problem.nodes}):
            size = sum(node.num_gpus for node in problem.nodes if node.gpu_type == gpu_type)
            areas = [
                (x[j, c], -choice.duration_s * choice.num_gpus / time_scale)
                for j, task in enumerate(tasks)
                for c, choice in enumerate(task.choices)
                if choice.gpu_type == gpu_type
            ]
            rows.add([(end, float(size)), *areas], 0.0, infinity)
    scale = max((abs(price) for price in cost), default=1.0) or 1.0
    if known_score is not None:
        rows.add([(column, price / scale) for column, price in enumerate(cost) if price], -infinity, known_score / scale + 1e-9)
    entries = rows.entries
    matrix = csr_matrix(
        ([value for *_, value in entries], ([row for row, _, _ in entries], [column for _, column, _ in entries])),
        shape=(len(rows.low), len(low)),
    )
    result = milp(
        c=np.array(cost) / scale,
        constraints=LinearConstraint(matrix, np.array(rows.low), np.array(rows.high)),
        integrality=np.array(integer),
        bounds=Bounds(np.array(low), np.array(high)),
        options={"node_limit": max_nodes, "time_limit": time_limit_s, "mip_rel_gap": 1e-6},
    )
    bound = None if result.mip_dual_bound is None or not np.isfinite(result.mip_dual_bound) else float(result.mip_dual_bound) * scale
    if result.x is None:
        return ExactResult(schedule=None, bound=bound, is_infeasible=result.status == 2 and known is None)
    return ExactResult(schedule=_read(problem, result.x, x, use, start, time_scale), bound=bound, is_infeasible=False)


def _read(
    problem: Problem,
    values: Sequence[float],
    x: dict[tuple[int, int], int],
    use: dict[tuple[int, int, str], int],
    start: list[int],
    time_scale: float,
) -> Schedule:
    """The solver's choices and nodes, and starts as early as they allow: its own are exact to a tolerance only."""
    rough = []
    for j, task in enumerate(problem.tasks):
        c = max(range(len(task.choices)), key=lambda c: values[x[j, c]])
        choice = task.choices[c]
        likely = sorted(problem.node_names(choice), key=lambda name: -values[use[j, c, name]])
        rough.append((values[start[j]] * time_scale, task, c, tuple(sorted(likely[: choice.num_nodes]))))
    timeline = Timeline(problem)
    slots = {}
    for _, task, c, names in sorted(rough, key=lambda each: (each[1].choices[each[2]].start_s is None, each[0], each[1].name)):
        start_s = timeline.put(task.choices[c], names)
        slots[task.name] = Slot(choice=c, start_s=start_s, nodes=names)
    return slots
