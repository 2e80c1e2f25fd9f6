"""One choice for each job so that the sum of values is greatest and no GPU type is overbooked.

maximise sum_jc values[j, c] x[j, c], with sum_c x[j, c] <= 1 for each job and sum num_gpus[c] x[j, c] <= capacity for each GPU type:
`solve_exactly` by branch and bound (HiGHS), `solve_by_prices` by Lagrangian prices of a GPU of each type, for any size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_NUM_STEPS = 24  # of the prices
_FIRST_PULL = 0.7  # exponent of demand over capacity in the first step
_MAX_REPAIRS = 10_000


def solve_exactly(
    values: FloatArray, type_of: IntArray, num_gpus: IntArray, capacity: IntArray, *, relative_gap: float = 1e-4, time_limit_s: float = 60.0
) -> IntArray:
    """[J] the best choice of each job, -1 for none; non-positive and non-finite values are never chosen.

    Args:
        values: [J, C].
        type_of: [C] index of the GPU type.
        num_gpus: [C].
        capacity: [T].
        relative_gap: to the optimum at which to stop.
        time_limit_s: after which the best answer so far is taken; with none, the one by prices.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    rows, columns = np.nonzero(np.isfinite(values) & (values > 0))
    chosen = np.full(len(values), -1, dtype=np.int64)
    if not len(rows):
        return chosen
    num_jobs, count = len(values), len(rows)
    entry = np.arange(count)
    constraint = csr_matrix(
        (
            np.concatenate([np.ones(count), num_gpus[columns]]),
            (np.concatenate([rows, num_jobs + type_of[columns]]), np.concatenate([entry, entry])),
        ),
        shape=(num_jobs + len(capacity), count),
    )
    result = milp(
        -values[rows, columns],
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(constraint, ub=np.concatenate([np.ones(num_jobs), capacity])),
        options={"mip_rel_gap": relative_gap, "time_limit": time_limit_s},
    )
    if result.x is None:
        return solve_by_prices(values, type_of, num_gpus, capacity)
    taken = result.x > 0.5
    chosen[rows[taken]] = columns[taken]
    return chosen


def solve_by_prices(values: FloatArray, type_of: IntArray, num_gpus: IntArray, capacity: IntArray) -> IntArray:
    """As `solve_exactly`, within a few per cent of it, in time linear in the number of jobs."""
    start = np.full(len(capacity), np.maximum(values, 0.0).max(initial=0.0) / max(float(num_gpus.max(initial=1)), 1.0))
    return clear_market(lambda prices: values, type_of, num_gpus, capacity, start)


def solve_greedily(values: FloatArray, type_of: IntArray, num_gpus: IntArray, capacity: IntArray) -> IntArray:
    """As `solve_exactly`, by one change after the other: always that of the most value per further GPU."""
    worth = np.where(np.isfinite(values) & (values > 0), values, -np.inf)
    chosen = np.full(len(values), -1, dtype=np.int64)
    return _repaired(worth, worth, chosen, type_of, num_gpus, capacity) if values.size else chosen


def clear_market(
    values_at: Callable[[FloatArray], FloatArray], type_of: IntArray, num_gpus: IntArray, capacity: IntArray, start: FloatArray
) -> IntArray:
    """[J] the choice of each job at prices of a GPU of each type [T] at which jobs ask for no more than there is.

    Each job takes the choice with the greatest value less price. A type's price rises and falls with the ratio of demand to
    capacity, by less each time. Then what is overbooked is taken back and what is free given to the best changes of single jobs; as
    the relaxed problem's vertices leave at most one job for each type split (T coupling constraints), that is little.

    Args:
        values_at: prices [T] -> values [J, C]; non-positive and non-finite ones are never taken.
        type_of: [C] index of the GPU type.
        num_gpus: [C].
        capacity: [T].
        start: the first prices [T], above 0.
    """
    prices = np.maximum(start.astype(np.float64), 1e-12)
    is_possible = num_gpus <= capacity[type_of]
    demand = np.zeros(len(capacity))
    for step in range(_NUM_STEPS):
        values = values_at(prices)
        if not values.size:
            return np.full(len(values), -1, dtype=np.int64)
        worth = np.where(is_possible & np.isfinite(values) & (values > 0), values, -np.inf)
        reduced = worth - prices[type_of] * num_gpus
        chosen = reduced.argmax(axis=1)
        is_in = reduced[np.arange(len(chosen)), chosen] > 0
        taken = chosen[is_in]
        demand = np.bincount(type_of[taken], weights=num_gpus[taken], minlength=len(capacity))
        if step < _NUM_STEPS - 1:
            pull = _FIRST_PULL / (1 + step / 4)
            prices *= np.clip((demand + 0.5) / (capacity + 0.5), 0.25, 4.0) ** pull
    chosen[~is_in] = -1
    return _repaired(worth, reduced, chosen, type_of, num_gpus, capacity)


def _repaired(worth: FloatArray, reduced: FloatArray, chosen: IntArray, type_of: IntArray, num_gpus: IntArray, capacity: IntArray) -> IntArray:
    """Takes back what is overbooked, cheapest loss first, then fills what is free by the best changes of single jobs."""
    rows = np.arange(len(chosen))
    is_in = chosen >= 0
    free = capacity - np.bincount(type_of[chosen[is_in]], weights=num_gpus[chosen[is_in]], minlength=len(capacity)).astype(np.int64)
    value = np.where(is_in, worth[rows, chosen], 0.0)
    for kind in np.flatnonzero(free < 0).tolist():
        holders = np.flatnonzero((chosen >= 0) & (type_of[chosen] == kind))
        for row in holders[np.argsort(reduced[holders, chosen[holders]], kind="stable")].tolist():
            if free[kind] >= 0:
                break
            free[kind] += num_gpus[chosen[row]]
            chosen[row], value[row] = -1, 0.0
    for _ in range(_MAX_REPAIRS):
        returned_type = np.where(chosen >= 0, type_of[chosen], -1)
        returned = np.where(chosen >= 0, num_gpus[chosen], 0)
        room = free[type_of][None, :] + np.where(returned_type[:, None] == type_of[None, :], returned[:, None], 0)
        gain = np.where(num_gpus[None, :] <= room, worth - value[:, None], -np.inf)
        extra = np.maximum(num_gpus[None, :] - np.where(returned_type[:, None] == type_of[None, :], returned[:, None], 0), 0.25)
        score = np.where(gain > 1e-12, gain / extra, -np.inf)
        flat = int(score.argmax())
        row, choice = divmod(flat, score.shape[1])
        if score[row, choice] == -np.inf:
            break
        if chosen[row] >= 0:
            free[type_of[chosen[row]]] += num_gpus[chosen[row]]
        free[type_of[choice]] -= num_gpus[choice]
        chosen[row], value[row] = choice, worth[row, choice]
    return chosen
