"""The planning problem without names of models: tasks, ways to run each, nodes of equal GPUs, and what a schedule costs.

A task runs once, without a break, on a gang of GPUs of one type, the same number on each of its nodes: which *choice* (type, nodes, GPUs)
and when is to be decided. GPUs of a node are interchangeable here. That loses nothing: while a node is never asked for more GPUs than it
has, concrete devices can be dealt out in the order of start times (gpualloc.plan.devices).

Score (smaller is better), w: weight of a workload, F: its finish:

    mean_jct                sum w F / sum w
    makespan                max F, then mean_jct
    cost                    sum of money, then mean_jct
    throughput_per_money    -sum w (samples per money / the best the workload could have) / sum w, then mean_jct

"then": in a sum, times a factor so small that it only decides between equals. Deadlines and budgets bind under every objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gpualloc.plan.records import Objective

_TIE = 1e-4  # share of the whole score that mean_jct has where another objective comes first


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to run a task."""

    gpu_type: str
    num_nodes: int
    num_gpus: int  # over all its nodes, the same number on each
    duration_s: float  # until the last of its workloads ends
    tail_s: float  # sum over its workloads of weight times the time from the start to that workload's end
    money: float = 0.0
    merit: float = 0.0  # sum over its workloads of weight times samples per money, as a share of the best
    latest_start_s: float = float("inf")  # by deadlines
    nodes: tuple[str, ...] | None = None  # these and no others; None: any of the type
    start_s: float | None = None  # then and at no other time; None: whenever

    @property
    def gpus_per_node(self) -> int:
        return self.num_gpus // self.num_nodes

    @property
    def shape(self) -> tuple[str, int, int]:
        """(GPU type, nodes, GPUs)."""
        return self.gpu_type, self.num_nodes, self.num_gpus


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A task's place in the plan that is followed now."""

    start_s: float
    shape: tuple[str, int, int]  # of the choice
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A workload, or two that share a GPU."""

    name: str
    weight: float
    choices: tuple[Choice, ...]
    planned: Planned | None = None


@dataclass(frozen=True, kw_only=True)
class NodeGpus:
    """What a node can give out."""

    name: str
    gpu_type: str
    num_gpus: int


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A task's place in a schedule."""

    choice: int  # index into the task's choices
    start_s: float
    nodes: tuple[str, ...]


Schedule = Mapping[str, Slot]  # task name -> slot


@dataclass(frozen=True, kw_only=True)
class Problem:
    tasks: tuple[Task, ...]
    nodes: tuple[NodeGpus, ...]
    objective: Objective

    @cached_property
    def total_weight(self) -> float:
        return sum(task.weight for task in self.tasks) or 1.0

    @cached_property
    def horizon_s(self) -> float:
        """All tasks one after the other, each at its slowest: no good schedule is longer."""
        return sum(max((choice.duration_s for choice in task.choices), default=0.0) for task in self.tasks) or 1.0

    @cached_property
    def scales(self) -> tuple[float, float, float, float]:
        """Factors of (mean_jct, makespan, money, merit) in the score."""
        tie = _TIE / self.horizon_s
        money = sum(max((choice.money for choice in task.choices), default=0.0) for task in self.tasks) or 1.0
        return {
            "mean_jct": (1.0, 0.0, 0.0, 0.0),
            "makespan": (_TIE, 1.0, 0.0, 0.0),
            "cost": (tie * money, 0.0, 1.0, 0.0),
            "throughput_per_money": (tie, 0.0, 0.0, 1.0),
        }[self.objective]

    def node_names(self, choice: Choice) -> list[str]:
        """Nodes that a choice may use at all."""
        if choice.nodes is not None:
            return list(choice.nodes)
        return [node.name for node in self.nodes if node.gpu_type == choice.gpu_type and node.num_gpus >= choice.gpus_per_node]

    def score_of(self, placed: Sequence[tuple[Task, Choice, float]]) -> float:
        """The score of (task, choice, start) of all tasks."""
        mean_jct = sum(task.weight * start + choice.tail_s for task, choice, start in placed) / self.total_weight
        makespan = max((start + choice.duration_s for _, choice, start in placed), default=0.0)
        money = sum(choice.money for _, choice, _ in placed)
        merit = sum(choice.merit for _, choice, _ in placed) / self.total_weight
        of_jct, of_makespan, of_money, of_merit = self.scales
        return of_jct * mean_jct + of_makespan * makespan + of_money * money - of_merit * merit

    def makespan_s(self, schedule: Schedule) -> float:
        """When the last task ends."""
        ends = (schedule[task.name].start_s + task.choices[schedule[task.name].choice].duration_s for task in self.tasks)
        return max(ends, default=0.0)

    def score(self, schedule: Schedule) -> float:
        return self.score_of([(task, task.choices[schedule[task.name].choice], schedule[task.name].start_s) for task in self.tasks])


def check_schedule(problem: Problem, schedule: Schedule) -> list[str]:
    """What a schedule breaks, a sentence each; [] for a sound one."""
    wrong = [f"{task.name} is missing" for task in problem.tasks if task.name not in schedule]
    size_of = {node.name: node for node in problem.nodes}
    events: dict[str, list[tuple[float, int]]] = {node.name: [] for node in problem.nodes}
    for task in problem.tasks:
        if task.name not in schedule:
            continue
        slot = schedule[task.name]
        choice = task.choices[slot.choice]
        if len(set(slot.nodes)) != choice.num_nodes or not set(slot.nodes) <= set(problem.node_names(choice)):
            wrong.append(f"{task.name} is on {slot.nodes}, which its choice does not allow")
        if slot.start_s > choice.latest_start_s * (1 + 1e-9):
            wrong.append(f"{task.name} misses a deadline")
        if slot.start_s < 0 or (choice.start_s is not None and slot.start_s != choice.start_s):
            wrong.append(f"{task.name} starts at {slot.start_s}")
        for name in slot.nodes:
            events[name] += [(slot.start_s, choice.gpus_per_node), (slot.start_s + choice.duration_s, -choice.gpus_per_node)]
    for name, changes in events.items():
        used = 0
        for time_s, change in sorted(changes, key=lambda event: (event[0], event[1])):
            used += change
            if used > size_of[name].num_gpus:
                wrong.append(f"{name} gives out {used} of {size_of[name].num_gpus} GPUs at {time_s:.1f} s")
    return wrong
