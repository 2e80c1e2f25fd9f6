"""The smallest change of the inputs that makes an impossible plan possible, found by trying: each change named here was planned with.

A change's size is how much of what was asked it takes back: a deadline of 6 h instead of 5 h is 0.2, min_gpus 4 instead of 8 is 0.5, one
more GPU beside 8 is 0.125, and so is one of 8 freed. First each workload that no GPUs suit by itself gets the smallest change that suits
it; then, if deadlines clash, the smallest of these is made: one of them moved as little as it takes, all of them stretched by one factor,
GPUs freed or added.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from gpualloc.plan.cluster_file import ClusterFile, ClusterNode
from gpualloc.plan.planner import make_plan
from gpualloc.plan.preparing import WEIGHS_MONEY, PlanOptions, Prepared, prepare
from gpualloc.plan.problem import Problem
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Plan
from gpualloc.plan.solving import solve
from gpualloc.plan.workloads import MoneyLimit, Workload, WorkloadsFile

_MAX_ADDED_GPUS = 16  # on one node, each number tried; beyond it only what makes a count that the workload may have
_SPARE = 1.001  # of a deadline or budget that is named: it is rounded, and a plan at the very edge helps nobody
_HALVINGS = 12  # of the interval in which a deadline is looked for
_HOUR_S = 3600.0

Inputs = tuple[WorkloadsFile, ClusterFile]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What to change, in words and as it is done."""

    text: str
    size: float  # share of what was asked
    inputs: Inputs  # with the change made


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Changes that together make a plan possible."""

    changes: tuple[Change, ...]

    @property
    def text(self) -> str:
        return ", and ".join(change.text for change in self.changes)

    @property
    def inputs(self) -> Inputs:
        return self.changes[-1].inputs


@dataclass(frozen=True, kw_only=True)
class _Context:
    knowledge: Knowledge
    options: PlanOptions
    now_utc: datetime
    current: Plan | None

    def prepared(self, inputs: Inputs) -> Prepared:
        return prepare(*inputs, self.knowledge, self.options, now_utc=self.now_utc, current=self.current)

    def is_possible(self, inputs: Inputs) -> bool:
        found = make_plan(
            *inputs, self.knowledge, dataclasses.replace(self.options, method="scalable"), now_utc=self.now_utc, current=self.current
        )
        return hasattr(found, "plan")

    def is_suited(self, inputs: Inputs, name: str) -> bool:
        """Whether the workload has a choice."""
        file, cluster = inputs
        alone = file.model_copy(update={"workloads": [each for each in file.workloads if each.name == name], "sharing": []})
        return bool(self.prepared((alone, cluster)).built[name].task.task.choices)


def smallest_change(
    file: WorkloadsFile,
    cluster: ClusterFile,
    knowledge: Knowledge,
    options: PlanOptions,
    *,
    now_utc: datetime,
    current: Plan | None = None,
) -> Remedy | None:
    """Changes after which there is a plan; None where none of these kinds helps."""
    context = _Context(knowledge=knowledge, options=options, now_utc=now_utc, current=current)
    inputs, changes = (file, cluster), list[Change]()
    for name in context.prepared(inputs).stuck:
        if context.is_suited(inputs, name):
            continue  # a change made for another workload suits this one, too
        found = min(_that_suit(context, inputs, name), key=lambda change: change.size, default=None)
        if found is None:
            return None
        changes.append(found)
        inputs = found.inputs
    if not context.is_possible(inputs):
        found = min(_that_make_room(context, inputs), key=lambda change: change.size, default=None)
        if found is None:
            return None
        changes.append(found)
    return Remedy(changes=tuple(changes)) if changes else None


def _that_suit(context: _Context, inputs: Inputs, name: str) -> Iterator[Change]:
    """Changes after which the workload has a choice."""
    workload = next(each for each in inputs[0].workloads if each.name == name)
    for propose in (_freed_gpus, _more_gpus, _fewer_gpus, _other_types, _later, _dearer, _less_efficient):
        for change in sorted(propose(context, inputs, workload), key=lambda change: change.size):
            if context.is_suited(change.inputs, name):
                yield change
                break


def _fewer_gpus(context: _Context, inputs: Inputs, workload: Workload) -> Iterator[Change]:
    for count in range(workload.min_gpus - 1, 0, -1):
        changed = _with_workload(inputs, workload, min_gpus=count)
        yield Change(text=f"{workload.name}: min_gpus {workload.min_gpus} -> {count}", size=1 - count / workload.min_gpus, inputs=changed)


def _more_gpus(context: _Context, inputs: Inputs, workload: Workload) -> Iterator[Change]:
    types = [each for each in workload.gpu_types or inputs[1].gpu_types if each in inputs[1].gpu_types]
    for gpu_type in types:
        there = len(_largest_node(inputs[1], gpu_type).available)
        counts = {2**power for power in range(workload.max_gpus.bit_length())} | {workload.min_gpus}
        counts |= {row.num_gpus for row in workload.rates if row.gpu_type == gpu_type}
        lacking = {count - there for count in counts if workload.min_gpus <= count <= workload.max_gpus}
        for added in {*range(1, _MAX_ADDED_GPUS + 1), *lacking}:
            if added > 0:
                yield _with_gpus(inputs, gpu_type, added)


def _freed_gpus(context: _Context, inputs: Inputs, workload: Workload) -> Iterator[Change]:
    for node in inputs[1].nodes:
        if workload.gpu_types is None or node.gpu_type in workload.gpu_types:
            yield from _freed_on(inputs, node)


def _freed_on(inputs: Inputs, node: ClusterNode) -> list[Change]:
    """One more GPU of the node with each."""
    file, cluster = inputs
    changes = []
    taken = sorted(node.unavailable)
    for count in range(1, len(taken) + 1):
        freed = taken[:count]
        left = {field: [e for e in getattr(node, field) if _index_of(node, e) not in freed] for field in ("reserved", "busy")}
        nodes = [each.model_copy(update=left) if each is node else each for each in cluster.nodes]
        changes.append(
            Change(
                text=f"{node.name}: GPU {', '.join(map(str, freed))} free instead of {node.unavailable[freed[0]]}",
                size=count / sum(each.num_gpus for each in cluster.nodes),
                inputs=(file, cluster.model_copy(update={"nodes": nodes})),
            )
        )
    return changes


def _other_types(context: _Context, inputs: Inputs, workload: Workload) -> Iterator[Change]:
    if workload.gpu_types is None:
        return
    for gpu_type in inputs[1].gpu_types:
        is_priced = context.options.objective not in WEIGHS_MONEY or inputs[1].price_of(gpu_type) is not None
        if gpu_type not in workload.gpu_types and is_priced:
            changed = _with_workload(inputs, workload, gpu_types=[*workload.gpu_types, gpu_type])
            yield Change(text=f"{workload.name}: {gpu_type} among its gpu_types", size=1 / len(workload.gpu_types), inputs=changed)


def _later(context: _Context, inputs: Inputs, workload: Workload) -> Iterator[Change]:
    """Its deadline as late as its quickest choice needs."""
    if workload.deadline_h is None:
        return
    endless = _with_workload(inputs, workload, deadline_h=None)
    choices = context.prepared(endless).built[workload.name].task.task.choices
    if choices:
        needed = _rounded_up(min(choice.duration_s for choice in choices) / _HOUR_S)
        yield _with_deadline(inputs, workload, needed)


def _dearer(context: _Context, inputs: Inputs, workload: Workload) -> Iterator[Change]:
    budget, price_currency = workload.budget, inputs[1].currency
    if budget is None or budget.currency != price_currency:
        return
    built = context.prepared(_with_workload(inputs, workload, budget=None)).built[workload.name]
    if built.task.task.choices:
        needed = _rounded_up(min(choice.money for choice in built.task.task.choices))
        yield Change(
            text=f"{workload.name}: a budget of at least {needed:g} {budget.currency} (it has {budget.value:g})",
            size=needed / budget.value - 1,
            inputs=_with_workload(inputs, workload, budget=MoneyLimit(value=needed, currency=budget.currency)),
        )


def _less_efficient(context: _Context, inputs: Inputs, workload: Workload) -> Iterator[Change]:
    threshold = workload.min_efficiency if workload.min_efficiency is not None else context.options.min_efficiency
    for percent in range(math.ceil(threshold * 100) - 1, -1, -5):
        yield Change(
            text=f"{workload.name}: min_efficiency {threshold:g} -> {percent / 100:g}",
            size=1 - percent / 100 / threshold,
            inputs=_with_workload(inputs, workload, min_efficiency=percent / 100),
        )


def _that_make_room(context: _Context, inputs: Inputs) -> Iterator[Change]:
    """Changes after which the deadlines of all can be kept."""
    bound = [each for each in inputs[0].workloads if each.deadline_h is not None]
    for workload in bound:
        change = _least(
            lambda hours, workload=workload: _with_deadline(inputs, workload, hours),  # type: ignore[misc]
            low=workload.deadline_h or 0.0,
            high=_last_finish_h(context, _with_workload(inputs, workload, deadline_h=None)),
            is_enough=context.is_possible,
        )
        if change is not None:
            yield change
    if len(bound) > 1 and (change := _stretched(context, inputs)) is not None:
        yield change
    for node in inputs[1].nodes:
        changes = _freed_on(inputs, node)
        first = bisect_left(changes, True, key=lambda change: context.is_possible(change.inputs))
        yield from changes[first : first + 1]
    for added in range(1, _MAX_ADDED_GPUS + 1):
        found = [_with_gpus(inputs, gpu_type, added) for gpu_type in inputs[1].gpu_types]
        able = [change for change in found if context.is_possible(change.inputs)]
        if able:
            yield from able
            return


def _stretched(context: _Context, inputs: Inputs) -> Change | None:
    file, cluster = inputs
    endless = (file.model_copy(update={"workloads": [each.model_copy(update={"deadline_h": None}) for each in file.workloads]}), cluster)
    tightest = min(each.deadline_h for each in file.workloads if each.deadline_h is not None)

    def stretched(factor: float) -> Change:
        changed = [
            each if each.deadline_h is None else each.model_copy(update={"deadline_h": each.deadline_h * factor}) for each in file.workloads
        ]
        text = f"all deadlines {factor:.3g} times as far away"
        return Change(text=text, size=factor - 1, inputs=(file.model_copy(update={"workloads": changed}), cluster))

    return _least(stretched, low=1.0, high=_last_finish_h(context, endless) / tightest, is_enough=context.is_possible)


def _least(make: Callable[[float], Change], *, low: float, high: float | None, is_enough: Callable[[Inputs], bool]) -> Change | None:
    """The change with the least figure that is enough, to a rounding; None where `high` is not."""
    if high is None:
        return None
    high = _rounded_up(max(high, low) * _SPARE)
    best = make(high)
    if not is_enough(best.inputs):
        return None
    for _ in range(_HALVINGS):
        middle = _rounded_up((low + high) / 2)
        if not low < middle < high:
            break
        trial = make(middle)
        if is_enough(trial.inputs):
            high, best = middle, trial
        else:
            low = middle
    return best


def _last_finish_h(context: _Context, inputs: Inputs) -> float:
    """When the last workload ends in a plan of these inputs, or all of them one after the other where there is none."""
    prepared = context.prepared(inputs)
    tasks = tuple(built.task.task for built in prepared.built.values() if built.task.task.choices)
    problem = Problem(tasks=tasks, nodes=prepared.nodes, objective="makespan")
    schedule = solve(problem, seed=context.options.seed, method="scalable", with_gap=False).schedule
    if schedule is None:
        return problem.horizon_s / _HOUR_S
    ends = [schedule[task.name].start_s + task.choices[schedule[task.name].choice].duration_s for task in tasks]
    return max(ends, default=0.0) / _HOUR_S


def _with_workload(inputs: Inputs, workload: Workload, **update: object) -> Inputs:
    file, cluster = inputs
    changed = workload.model_copy(update=update)
    workloads = [changed if each.name == workload.name else each for each in file.workloads]
    return file.model_copy(update={"workloads": workloads}), cluster


def _with_deadline(inputs: Inputs, workload: Workload, hours: float) -> Change:
    assert workload.deadline_h is not None
    return Change(
        text=f"{workload.name}: a deadline of at least {hours:g} h (it has {workload.deadline_h:g} h)",
        size=hours / workload.deadline_h - 1,
        inputs=_with_workload(inputs, workload, deadline_h=hours),
    )


def _largest_node(cluster: ClusterFile, gpu_type: str) -> ClusterNode:
    return max(cluster.nodes_of(gpu_type), key=lambda each: (len(each.available), each.num_gpus))


def _with_gpus(inputs: Inputs, gpu_type: str, added: int) -> Change:
    """More GPUs in the largest node of the type, as that node has them."""
    file, cluster = inputs
    node = _largest_node(cluster, gpu_type)
    new = list(range(node.num_gpus, node.num_gpus + added))
    larger = node.model_copy(
        update={"num_gpus": node.num_gpus + added, "uuids": [], "reserved": [_index_of(node, e) for e in node.reserved],
                "busy": [_index_of(node, e) for e in node.busy], "islands": [*node.islands, new] if node.islands else []}
    )  # fmt: skip
    nodes = [larger if each is node else each for each in cluster.nodes]
    total = sum(each.num_gpus for each in cluster.nodes)
    where = f" in {node.name}" if len(cluster.nodes) > 1 else ""
    return Change(text=f"{added} more {gpu_type}{where}", size=added / total, inputs=(file, cluster.model_copy(update={"nodes": nodes})))


def _index_of(node: ClusterNode, entry: int | str) -> int:
    if isinstance(entry, int):
        return entry
    return next(index for index, uuid in enumerate(node.uuids) if uuid.startswith(entry))


def _rounded_up(value: float) -> float:
    """To three digits."""
    if value <= 0:
        return value
    digits = 2 - math.floor(math.log10(value))
    return math.ceil(round(value * 10.0**digits, 6)) / 10.0**digits
