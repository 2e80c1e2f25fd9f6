"""One choice for each job so that the sum of values is greatest and no GPU type is overbooked.

maximise sum_jc values[j, c] x[j, c], with sum_c x[j, c] <= 1 for each job and sum num_gpus[c] x[j, c] <= capacity for each GPU type:
`solve_exactly` by branch and bound (HiGHS), `solve_by_prices` by Lagrangian prices of a GPU of each type, for any size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.integer_program import milp

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_NUM_STEPS = 12  # of the prices
_FIRST_PULL = 0.7  # exponent of demand over capacity in the first step
_NUM_POLYAK = 20
_CLOSE = 1e-3  # relative distance to the bound at which an answer is good enough
_MAX_CORE_WORK = 1e7  # table cells times choices, above which the remaining choices are not searched: 20 ms
_MAX_MENDED = 300  # jobs whose choice is looked at again, the most nearly indifferent ones
_JOBS_PER_CHANGE = 150  # so many jobs more, and one more changes between two looks at all of them
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
    rows, columns = np.nonzero(np.isfinite(values) & (values > 0))
    exact = _integer_program(values, rows, columns, type_of, num_gpus, capacity, relative_gap, time_limit_s)
    return solve_by_prices(values, type_of, num_gpus, capacity) if exact is None else exact


def _integer_program(
    values: FloatArray,
    rows: IntArray,
    columns: IntArray,
    type_of: IntArray,
    num_gpus: IntArray,
    capacity: IntArray,
    relative_gap: float,
    time_limit_s: float,
) -> IntArray | None:
    """[J] the best of the choices (rows[i], columns[i]), sorted by row; None where the time was too short for any answer."""
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.sparse import csc_matrix

    chosen = np.full(len(values), -1, dtype=np.int64)
    if not len(rows):
        return chosen
    jobs, job_rows = np.unique(rows, return_inverse=True)
    count = len(rows)
    coefficients = np.stack([np.ones(count), num_gpus[columns]], axis=1).ravel()
    lines = np.stack([job_rows, len(jobs) + type_of[columns]], axis=1).ravel()
    matrix = csc_matrix((coefficients, lines, np.arange(0, 2 * count + 1, 2)), shape=(len(jobs) + len(capacity), count))
    result = milp(
        -values[rows, columns],
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, ub=np.concatenate([np.ones(len(jobs)), capacity])),
        options={"mip_rel_gap": relative_gap, "time_limit": time_limit_s},
    )
    if result.x is None:
        return None
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

    Each job takes the choice with the greatest value less price. A type's price rises and falls with the ratio of demand to capacity,
    by less each time; then subgradient steps (Polyak) lower the Lagrangian bound at the last values. What is overbooked is taken back,
    what is free goes to the best changes of single jobs. Choices whose loss at the prices is above the distance between bound and
    answer cannot be in the optimum (reduced-cost fixing); the few that remain are searched by dynamic programming where the tables are
    small.

    Args:
        values_at: prices [T] -> values [J, C]; non-positive and non-finite ones are never taken.
        type_of: [C] index of the GPU type.
        num_gpus: [C].
        capacity: [T].
        start: the first prices [T], above 0.
    """
    prices = np.maximum(start.astype(np.float64), 1e-12)
    market = _Market(type_of, num_gpus, capacity)
    for step in range(_NUM_STEPS):
        values = values_at(prices)
        if not values.size:
            return np.full(len(values), -1, dtype=np.int64)
        market.offer(values)
        demand = market.ask(prices)
        ratio = np.minimum(np.maximum((demand + 0.5) / (capacity + 0.5), 0.25), 4.0)
        prices = prices * ratio ** (_FIRST_PULL / (1 + step / 4))
    return market.best_at(prices)


class _Market:
    """Jobs with fixed values, and the prices with the lowest Lagrangian bound so far."""

    def __init__(self, type_of: IntArray, num_gpus: IntArray, capacity: IntArray) -> None:
        self._type_of, self._num_gpus, self._capacity = type_of, num_gpus, capacity
        self._is_possible = num_gpus <= capacity[type_of]
        self._gpus_by_type = np.where(type_of[:, None] == np.arange(len(capacity)), num_gpus[:, None], 0).astype(np.float64)  # [C, T]
        self._rows = np.arange(0)

    def offer(self, values: FloatArray) -> None:
        """What the choices are worth to the jobs from now on."""
        self._worth = np.where((values > 0) & (values < np.inf) & self._is_possible, values, -np.inf)
        if len(self._rows) != len(values):
            self._rows = np.arange(len(values))

    def ask(self, prices: FloatArray) -> FloatArray:
        """[T] GPUs that jobs ask for at these prices."""
        self.reduced = self._worth - self._gpus_by_type @ prices
        self.chosen = self.reduced.argmax(axis=1)
        self.surplus = np.maximum(self.reduced[self._rows, self.chosen], 0.0)
        self.bound = float(self.surplus.sum() + prices @ self._capacity)
        demand: FloatArray = self._gpus_by_type[self.chosen[self.surplus > 0]].sum(axis=0)
        return demand

    def best_at(self, prices: FloatArray) -> IntArray:
        demand = self.ask(prices)
        answer, value = self._mended()
        lowest, best_prices = self.bound, prices
        for _ in range(_NUM_POLYAK):
            slope = self._capacity - demand
            slope = np.where((prices <= 0) & (slope > 0), 0.0, slope)
            size = float(slope @ slope)
            if size == 0 or lowest - value <= _CLOSE * lowest:
                break
            prices = np.maximum(prices - 0.7 * (self.bound - value) / size * slope, 0.0)
            demand = self.ask(prices)
            if self.bound < lowest:
                lowest, best_prices = self.bound, prices
        self.ask(best_prices)
        other, other_value = self._mended()
        if other_value > value:
            answer, value = other, other_value
        if lowest - value <= _CLOSE * lowest:
            return answer
        return self._exact_core(answer, value, lowest)

    def _value(self, answer: IntArray) -> float:
        return float(self._worth[self._rows, answer][answer >= 0].sum())

    def _mended(self) -> tuple[IntArray, float]:
        start = np.where(self.surplus > 0, self.chosen, -1)
        rows = self._rows
        if len(rows) > _MAX_MENDED:  # those that another choice would cost least
            others = self.reduced.copy()
            others[rows, self.chosen] = -np.inf
            loss = self.surplus - np.maximum(others.max(axis=1), np.where(self.surplus > 0, 0.0, -np.inf))
            rows = np.argsort(loss, kind="stable")[:_MAX_MENDED]
        answer = _repaired(self._worth, self.reduced, start, self._type_of, self._num_gpus, self._capacity, rows)
        return answer, self._value(answer)

    def _exact_core(self, answer: IntArray, value: float, bound: float) -> IntArray:
        gap = (bound - value) * (1 + 1e-9)
        is_open = self.surplus[:, None] - self.reduced <= gap
        may_wait = self.surplus <= gap
        options = is_open.sum(axis=1) + may_wait
        settled = np.where((options == 1) & ~may_wait, is_open.argmax(axis=1), -1)
        core = np.flatnonzero(options > 1)
        holders = settled[settled >= 0]
        used = np.bincount(self._type_of[holders], weights=self._num_gpus[holders], minlength=len(self._capacity))
        room = self._capacity - used.astype(np.int64)
        asked = np.where(is_open[core][:, :, None], self._gpus_by_type, 0.0).max(axis=1).sum(axis=0)
        room = np.minimum(room, asked.astype(np.int64))  # no more than all of them can take
        if not len(core) or (room < 0).any() or float(np.prod(room + 1.0)) * float(options[core].sum()) > _MAX_CORE_WORK:
            return answer
        choices = [[(float(self._worth[row, c]), int(c)) for c in np.flatnonzero(is_open[row])] for row in core.tolist()]
        best = _dynamic_program(choices, may_wait[core].tolist(), self._type_of, self._num_gpus, room)
        if best is None:
            return answer
        settled[core] = best
        return settled if self._value(settled) > value else answer


def _dynamic_program(
    choices: list[list[tuple[float, int]]], may_wait: list[bool], type_of: IntArray, num_gpus: IntArray, room: IntArray
) -> list[int] | None:
    """The best choice of each job, -1 for none, by the best value at every possible room of GPUs by type; None where nothing fits."""
    table = np.zeros(tuple((room + 1).tolist()))
    taken = []
    for options, can_wait in zip(choices, may_wait, strict=True):
        best = table.copy() if can_wait else np.full_like(table, -np.inf)
        pick = np.full(table.shape, -1, dtype=np.int16)
        for value, choice in options:
            kind, count = int(type_of[choice]), int(num_gpus[choice])
            if count > room[kind]:
                continue
            before = (slice(None),) * kind
            target = (*before, slice(count, None))
            source = (*before, slice(None, -count))
            offer = table[source] + value
            is_better = offer > best[target]
            np.copyto(best[target], offer, where=is_better)
            pick[target][is_better] = choice
        table = best
        taken.append(pick)
    place = [int(count) for count in room]
    if table[tuple(place)] == -np.inf:
        return None
    result = []
    for pick in reversed(taken):
        choice = int(pick[tuple(place)])
        result.append(choice)
        if choice >= 0:
            place[type_of[choice]] -= int(num_gpus[choice])
    return result[::-1]


def _repaired(
    worth: FloatArray,
    reduced: FloatArray,
    chosen: IntArray,
    type_of: IntArray,
    num_gpus: IntArray,
    capacity: IntArray,
    rows: IntArray | None = None,
) -> IntArray:
    """Takes back what is overbooked, cheapest loss first, then fills what is free by the best changes of single jobs, of `rows` only."""
    chosen = chosen.copy()
    is_in = chosen >= 0
    free = capacity - np.bincount(type_of[chosen[is_in]], weights=num_gpus[chosen[is_in]], minlength=len(capacity)).astype(np.int64)
    taken_back = []
    for kind in np.flatnonzero(free < 0).tolist():
        holders = np.flatnonzero((chosen >= 0) & (type_of[chosen] == kind))
        for row in holders[np.argsort(reduced[holders, chosen[holders]], kind="stable")].tolist():
            if free[kind] >= 0:
                break
            free[kind] += num_gpus[chosen[row]]
            chosen[row] = -1
            taken_back.append(row)
    rows = np.arange(len(chosen)) if rows is None else np.union1d(rows, np.array(taken_back[-_MAX_MENDED:], dtype=np.int64))
    part, offers = chosen[rows], worth[rows]
    every = np.arange(len(rows))
    value = np.where(part >= 0, offers[every, part], 0.0)
    num_at_once = 1 + len(rows) // _JOBS_PER_CHANGE
    for _ in range(_MAX_REPAIRS):
        returned_type = np.where(part >= 0, type_of[part], -1)
        returned = np.where(returned_type[:, None] == type_of[None, :], num_gpus[part][:, None], 0)
        gain = np.where(num_gpus[None, :] <= free[type_of][None, :] + returned, offers - value[:, None], -np.inf)
        score = np.where(gain > 1e-12, gain / np.maximum(num_gpus[None, :] - returned, 0.25), -np.inf)
        choice_of = score.argmax(axis=1)
        best = score[every, choice_of]
        places = np.argsort(-best, kind="stable")[:num_at_once]
        if best[places[0]] == -np.inf:
            break
        for place in places.tolist():
            choice, before = int(choice_of[place]), int(part[place])
            back = int(num_gpus[before]) if before >= 0 and type_of[before] == type_of[choice] else 0
            if best[place] == -np.inf or num_gpus[choice] > free[type_of[choice]] + back:
                continue
            if before >= 0:
                free[type_of[before]] += num_gpus[before]
            free[type_of[choice]] -= num_gpus[choice]
            part[place], value[place] = choice, offers[place, choice]
    chosen[rows] = part
    return chosen
