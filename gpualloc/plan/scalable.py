"""Schedules for any number of tasks: an order, each task put where it adds least to the score, and a seeded search over orders.

One pass places the tasks in an order; each takes, of all its choices and nodes, the start and place that add least to the score, ties going
to the one with fewer GPU-seconds. Greed alone gives the first tasks all GPUs, so a pass also knows a *price* of GPU time: the score that a
GPU-second costs those who come later, as an auction would find it. The search varies the order, the price, and fixed choices of single
tasks; it goes on from what is better, and at first from what is a little worse, too, as simulated annealing does. A fixed number of passes
rather than of seconds: the same seed gives the same plan on any machine.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from gpualloc.plan.problem import Choice, Problem, Schedule, Slot, Task

_PRICES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)  # times the smallest weighted work that waits behind: chosen by the test against the MILP
_WORSE = 0.03  # share of the score by which a step may be worse at the beginning; 0 at the end
_PLACEMENTS = 60_000  # tries of a choice that a search may take in all, whatever the number of tasks
_MIN_PASSES, DEFAULT_PASSES = 24, 1_500


class _Profile:
    """GPUs in use on a node over time: from `times[k]` on, `used[k]`."""

    def __init__(self, num_gpus: int) -> None:
        self.num_gpus = num_gpus
        self.times = [0.0]
        self.used = [0]

    def free_until(self, start_s: float, count: int, duration_s: float) -> float | None:
        """None where `count` GPUs are free from `start_s` on for as long; else the next time at which it may be so."""
        place = bisect_right(self.times, start_s) - 1
        end_s = start_s + duration_s
        while place < len(self.times) and self.times[place] < end_s:
            if self.used[place] + count > self.num_gpus:
                while place < len(self.times) and self.used[place] + count > self.num_gpus:
                    place += 1
                return self.times[place]  # the last entry is 0 GPUs in use
            place += 1
        return None

    def earliest(self, count: int, duration_s: float, *, from_s: float = 0.0) -> float:
        later: float | None = from_s
        start_s = from_s
        while later is not None:
            start_s = later
            later = self.free_until(start_s, count, duration_s)
        return start_s

    def take(self, start_s: float, duration_s: float, count: int) -> None:
        for time_s in (start_s, start_s + duration_s):
            place = bisect_right(self.times, time_s)
            if self.times[place - 1] != time_s:
                self.times.insert(place, time_s)
                self.used.insert(place, self.used[place - 1])
        for place in range(bisect_right(self.times, start_s) - 1, bisect_right(self.times, start_s + duration_s) - 1):
            self.used[place] += count


class Timeline:
    """What is in use on all nodes while tasks are put on nodes that are known."""

    def __init__(self, problem: Problem) -> None:
        self._profiles = {node.name: _Profile(node.num_gpus) for node in problem.nodes}

    def put(self, choice: Choice, nodes: Sequence[str]) -> float:
        """The earliest start on these nodes, which are taken from then on."""
        start_s, is_settled = choice.start_s or 0.0, choice.start_s is not None
        while not is_settled:
            waits = [self._profiles[name].free_until(start_s, choice.gpus_per_node, choice.duration_s) for name in nodes]
            later = [wait for wait in waits if wait is not None]
            is_settled, start_s = not later, max([start_s, *later])
        for name in nodes:
            self._profiles[name].take(start_s, choice.duration_s, choice.gpus_per_node)
        return start_s


class _Search:
    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.random = random.Random(seed)
        self.tasks = {task.name: task for task in problem.tasks}
        self.node_names = {id(choice): problem.node_names(choice) for task in problem.tasks for choice in task.choices}
        capacity = sum(node.num_gpus for node in problem.nodes) or 1
        # What one GPU-second less is worth: all the weight that waits, over all GPUs; as a part of the score.
        of_jct, of_makespan, _, _ = problem.scales
        self.gpu_second = of_jct / capacity + of_makespan / capacity
        self.is_pinned = {task.name: any(choice.start_s is not None for choice in task.choices) for task in problem.tasks}

    def place(
        self, order: Sequence[str], price: float, fixed: Mapping[str, int], nodes_of: Mapping[str, tuple[str, ...]] | None = None
    ) -> tuple[float, dict[str, Slot]] | None:
        """(score, schedule) of one pass, on the nodes of `nodes_of` where it names a task; None where a task does not make its deadline."""
        problem = self.problem
        profiles = {node.name: _Profile(node.num_gpus) for node in problem.nodes}
        of_jct, of_makespan, of_money, of_merit = problem.scales
        weight_left = sum(task.weight for task in problem.tasks)
        slots: dict[str, Slot] = {}
        makespan_s, placed = 0.0, []
        for name in order:
            task = self.tasks[name]
            weight_left -= task.weight
            gpu_second = price * self.gpu_second * max(weight_left, 0.0) / problem.total_weight
            best: tuple[float, float, int, float, tuple[str, ...]] | None = None
            numbers = (fixed[name],) if name in fixed else range(len(task.choices))
            for number in numbers:
                choice = task.choices[number]
                found = self._earliest(choice, profiles, (nodes_of or {}).get(name))
                if found is None:
                    continue
                start_s, nodes = found
                gpu_seconds = choice.duration_s * choice.num_gpus
                added = (
                    of_jct * (task.weight * start_s + choice.tail_s) / problem.total_weight
                    + of_makespan * max(0.0, start_s + choice.duration_s - makespan_s)
                    + of_money * choice.money
                    - of_merit * choice.merit / problem.total_weight
                    + gpu_second * gpu_seconds
                )
                if best is None or (added, gpu_seconds, number) < best[:3]:
                    best = (added, gpu_seconds, number, start_s, nodes)
            if best is None:
                return None
            _, _, number, start_s, nodes = best
            choice = task.choices[number]
            for node in nodes:
                profiles[node].take(start_s, choice.duration_s, choice.gpus_per_node)
            slots[name] = Slot(choice=number, start_s=start_s, nodes=nodes)
            makespan_s = max(makespan_s, start_s + choice.duration_s)
            placed.append((task, choice, start_s))
        return problem.score_of(placed), slots

    def _earliest(
        self, choice: Choice, profiles: Mapping[str, _Profile], only: tuple[str, ...] | None
    ) -> tuple[float, tuple[str, ...]] | None:
        """(start, nodes) of the earliest place, of `only` these nodes; among nodes the one that is left with the fewest free GPUs."""
        names, count = self.node_names[id(choice)], choice.gpus_per_node
        if only is not None:
            names = [name for name in names if name in only]
        if len(names) < choice.num_nodes:
            return None
        if choice.start_s is not None:
            nodes = tuple(names[: choice.num_nodes])
            is_free = all(profiles[name].free_until(choice.start_s, count, choice.duration_s) is None for name in nodes)
            return (choice.start_s, nodes) if is_free and choice.start_s <= choice.latest_start_s else None
        starts = sorted(
            (profiles[name].earliest(count, choice.duration_s), profiles[name].num_gpus, place, name) for place, name in enumerate(names)
        )
        start_s, nodes = starts[choice.num_nodes - 1][0], tuple(sorted(name for *_, name in starts[: choice.num_nodes]))
        if choice.num_nodes > 1:  # each node has its own gaps: move on until enough are free at once
            start_s = starts[0][0]
            while True:
                waits = [(profiles[name].free_until(start_s, count, choice.duration_s), place, name) for place, name in enumerate(names)]
                free = [name for wait, _, name in waits if wait is None]
                if len(free) >= choice.num_nodes:
                    nodes = tuple(sorted(free[: choice.num_nodes]))
                    break
                start_s = min(wait for wait, _, _ in waits if wait is not None)
        return None if start_s > choice.latest_start_s * (1 + 1e-12) else (start_s, nodes)

    def orders(self) -> list[list[str]]:
        """Orders to begin with: by weighted shortest GPU time, by shortest time, longest first, by deadline; what is pinned comes first."""

        def shortest(task: Task) -> float:
            return min(choice.duration_s for choice in task.choices)

        def gpu_time(task: Task) -> float:
            return min(choice.duration_s * choice.num_gpus for choice in task.choices)

        def deadline(task: Task) -> float:
            return max(choice.latest_start_s for choice in task.choices)

        keys = (
            lambda task: gpu_time(task) / max(task.weight, 1e-9),
            lambda task: shortest(task) / max(task.weight, 1e-9),
            lambda task: -shortest(task),
            lambda task: -gpu_time(task),
            deadline,
        )
        orders = []
        for key in keys:
            ranked = sorted(self.problem.tasks, key=lambda task: (not self.is_pinned[task.name], key(task), task.name))
            orders.append([task.name for task in ranked])
        return orders

    def planned(self) -> tuple[list[str], dict[str, int], dict[str, tuple[str, ...]]]:
        """(order, choices, nodes) of the plan that is followed now, as far as it goes: only a better one is worth its changes."""
        start_s, fixed, nodes_of = dict.fromkeys(self.tasks, float("inf")), {}, {}
        for task in self.problem.tasks:
            shapes = [choice.shape for choice in task.choices]
            if task.planned is not None and task.planned.shape in shapes:
                start_s[task.name], nodes_of[task.name] = task.planned.start_s, task.planned.nodes
                fixed[task.name] = shapes.index(task.planned.shape)
        return sorted(self.tasks, key=lambda name: (not self.is_pinned[name], start_s[name], name)), fixed, nodes_of

    def run(self, max_passes: int) -> Schedule | None:
        best: tuple[float, dict[str, Slot]] | None = None
        now_score = float("inf")
        now_how: tuple[list[str], float, dict[str, int]] = (self.orders()[-1], 0.0, {})

        def consider(
            order: list[str], price: float, fixed: dict[str, int], nodes_of: dict[str, tuple[str, ...]] | None = None, worse: float = 0.0
        ) -> None:
            nonlocal best, now_score, now_how
            found = self.place(order, price, fixed, nodes_of)
            if found is None:
                return
            if best is None or found[0] < best[0] - 1e-12 * abs(best[0]):
                best = found
            if found[0] <= now_score + worse * self.random.random() * abs(found[0]):
                now_score, now_how = found[0], (order, price, fixed)

        num_choices = sum(len(task.choices) for task in self.problem.tasks)
        budget = min(max_passes, max(_MIN_PASSES, _PLACEMENTS // max(1, num_choices)))
        order, fixed, nodes_of = self.planned()
        if fixed:
            consider(order, 0.0, fixed, nodes_of)
        for order in self.orders():
            for price in _PRICES:
                consider(order, price, {})
                budget -= 1
                if budget <= 0 and best is not None:
                    break
        for number in range(budget if len(self.problem.tasks) > 1 else 0):
            consider(*self._varied(*now_how), worse=_WORSE * (1 - number / budget))
        return None if best is None else best[1]

    def _varied(self, order: list[str], price: float, fixed: dict[str, int]) -> tuple[list[str], float, dict[str, int]]:
        """One of: a task moved, two swapped, another price, a choice fixed or set free."""
        movable = [name for name in order if not self.is_pinned[name]]
        order, fixed = list(order), dict(fixed)
        kind = self.random.random()
        if not movable or kind < 0.1:
            return order, self.random.choice(_PRICES), fixed
        if kind < 0.55 and len(movable) > 1:
            name = self.random.choice(movable)
            order.remove(name)
            order.insert(len(order) - self.random.randrange(len(movable)), name)
            if kind < 0.3:
                return order, price, fixed
        name = self.random.choice(movable)
        if name in fixed and self.random.random() < 0.5:
            del fixed[name]
        else:
            fixed[name] = self.random.randrange(len(self.tasks[name].choices))
        return order, price, fixed


def solve_scalable(problem: Problem, *, seed: int, max_passes: int = DEFAULT_PASSES) -> Schedule | None:
    """The best schedule that the search finds; None where it finds none that keeps all deadlines."""
    if any(not task.choices for task in problem.tasks):
        return None
    return _Search(problem, seed).run(max_passes)


class Replacing:
    """What other choices of single tasks would cost: all tasks keep the order of a schedule."""

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self._search = _Search(problem, 0)
        is_pinned = self._search.is_pinned
        self._order = sorted(schedule, key=lambda name: (not is_pinned[name], schedule[name].start_s, name))
        self._choices = {name: slot.choice for name, slot in schedule.items()}

    def place(self, name: str, choice: int) -> tuple[float, Schedule] | None:
        """(score, schedule) with that choice of one task; None where a deadline is missed then."""
        return self._search.place(self._order, 0.0, {**self._choices, name: choice})


def polish(problem: Problem, schedule: Schedule) -> Schedule:
    """The schedule, or a better one that differs in single choices, again and again until there is none."""
    while True:
        best, best_score = schedule, problem.score(schedule)
        replacing = Replacing(problem, schedule)
        for task in problem.tasks:
            for number in range(len(task.choices)):
                found = replacing.place(task.name, number)
                if found is not None and found[0] < best_score - 1e-9 * abs(best_score):
                    best_score, best = found
        if best is schedule:
            return schedule
        schedule = best
