"""A score that no schedule can beat, from a linear program: how good a schedule is, whatever method found it.

Time is cut into slots of equal length, the last one open-ended. y[j,c,t]: how much of task j starts in slot t as choice c; sum y = 1. The
GPUs of a type are one pool, a task may be split, and it takes only what it surely has in use wherever in its slot it starts: every schedule
is a solution, so the least score is a bound.

    least      sum y (weight * begin of slot + tail)                  as in gpualloc.plan.problem
    subject to sum over tasks of GPU-seconds surely used by the end of slot s <= size of the pool * time until then
"""

from __future__ import annotations

from gpualloc.plan.problem import Problem

_MAX_VARIABLES = 12_000  # a second or two on one core
_MAX_SLOTS = 64


def score_bound(problem: Problem, *, makespan_s: float) -> float | None:
    """None where the linear program has no solution.

    Args:
        makespan_s: of a good schedule: what is cut into slots.
    """
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    num_choices = sum(len(task.choices) for task in problem.tasks)
    if num_choices == 0 or makespan_s <= 0:
        return None
    num_slots = max(4, min(_MAX_SLOTS, _MAX_VARIABLES // num_choices))
    slot_s = makespan_s / num_slots
    pools = {
        gpu_type: sum(node.num_gpus for node in problem.nodes if node.gpu_type == gpu_type)
        for gpu_type in {node.gpu_type for node in problem.nodes}
    }
    row_of = {gpu_type: number * num_slots for number, gpu_type in enumerate(sorted(pools))}
    of_jct, of_makespan, of_money, of_merit = problem.scales
    cost: list[float] = []
    used: list[tuple[int, int, float]] = []  # (row, column, value)
    one: list[tuple[int, int]] = []  # (task, column)
    ends: list[tuple[int, int, float]] = []  # (task, column, end): no later than the makespan
    areas: list[tuple[str, int, float]] = []  # (GPU type, column, GPU-seconds)
    for j, task in enumerate(problem.tasks):
        for choice in task.choices:
            fixed = of_jct * choice.tail_s / problem.total_weight + of_money * choice.money - of_merit * choice.merit / problem.total_weight
            if len(problem.node_names(choice)) < choice.num_nodes:
                continue
            for t in range(num_slots + 1):  # the last one: after all slots
                begin_s = t * slot_s
                if begin_s > choice.latest_start_s or (choice.start_s is not None and not begin_s <= choice.start_s < begin_s + slot_s):
                    continue
                column = len(cost)
                cost.append(fixed + of_jct * task.weight * begin_s / problem.total_weight)
                one.append((j, column))
                ends.append((j, column, begin_s + choice.duration_s))
                areas.append((choice.gpu_type, column, choice.num_gpus * choice.duration_s))
                for s in range(t + 1, num_slots):
                    share = min(choice.duration_s / slot_s, s - t)
                    used.append((row_of[choice.gpu_type] + s, column, choice.num_gpus * share))
    if len({j for j, _ in one}) < len(problem.tasks):
        return None
    capacity = np.zeros(num_slots * len(pools))
    for gpu_type, row in row_of.items():
        capacity[row : row + num_slots] = pools[gpu_type] * np.arange(1, num_slots + 1)
    if of_makespan > 0:
        last = len(cost)
        cost.append(of_makespan)
        used += [(len(capacity) + j, column, end_s) for j, column, end_s in ends]
        used += [(len(capacity) + j, last, -1.0) for j in range(len(problem.tasks))]
        capacity = np.concatenate([capacity, np.zeros(len(problem.tasks))])
        for gpu_type, size in pools.items():  # all work of a type needs its time
            row = len(capacity)
            used += [(row, column, area) for each, column, area in areas if each == gpu_type]
            used.append((row, last, -float(size)))
            capacity = np.append(capacity, 0.0)
    scale = max(map(abs, cost)) or 1.0
    result = linprog(
        c=np.array(cost) / scale,
        A_ub=csr_matrix(([v for *_, v in used], ([r for r, *_ in used], [c for _, c, _ in used])), shape=(len(capacity), len(cost))),
        b_ub=capacity,
        A_eq=csr_matrix(([1.0] * len(one), ([j for j, _ in one], [c for _, c in one])), shape=(len(problem.tasks), len(cost))),
        b_eq=np.ones(len(problem.tasks)),
        method="highs",
    )
    return float(result.fun) * scale if result.status == 0 else None
