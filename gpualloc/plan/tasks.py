"""From workloads and what they could run as to the tasks of a planning problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.offers import Offer
from gpualloc.plan.problem import Choice, NodeGpus, Planned, Task
from gpualloc.plan.rates import strategies_for
from gpualloc.plan.records import Assignment
from gpualloc.plan.running import Progress
from gpualloc.plan.workloads import Sharing, Workload
from gpualloc.workloads.memory import USABLE_SHARE

MEASURING_S = 300.0  # an assumption: `gpualloc bench` of one case on a GPU, two rounds; it ends by itself
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Way:
    """A choice of a task in words: which offer of which workload, or staying where it runs."""

    workload: str
    offer: Offer | None  # None: it stays as it is
    assignment: Assignment | None  # where it runs now
    duration_s: float
    restart_s: float = 0.0  # at the start of the duration, without progress


@dataclass(frozen=True, kw_only=True)
class WorkloadTask:
    """A task with what its choices mean, in the same order. Two ways in one entry share a GPU."""

    task: Task
    ways: tuple[tuple[Way, ...], ...]

    def only(self, numbers: Sequence[int]) -> WorkloadTask:
        """With these choices and no others."""
        choices = tuple(self.task.choices[number] for number in numbers)
        return WorkloadTask(task=dataclasses.replace(self.task, choices=choices), ways=tuple(self.ways[number] for number in numbers))


@dataclass(frozen=True, kw_only=True)
class BuiltTask:
    """The task of one workload and its offers, those that its deadline and budget rule out refused."""

    task: WorkloadTask
    offers: tuple[Offer, ...]


def free_nodes(cluster: ClusterFile) -> tuple[NodeGpus, ...]:
    """What may be given out."""
    return tuple(NodeGpus(name=node.name, gpu_type=node.gpu_type, num_gpus=len(node.available)) for node in cluster.nodes)


def build_task(
    workload: Workload,
    offers: Sequence[Offer],
    cluster: ClusterFile,
    progress: Progress,
    planned: Assignment | None,
    *,
    is_pessimistic: bool,
) -> BuiltTask:
    """The choices that a workload has; `planned`: what the plan that is followed now gives it."""
    left, assignment = progress.samples_left, progress.assignment
    ways: list[Way] = []
    if assignment is not None:
        assert progress.rate is not None
        speed = progress.rate.low if is_pessimistic else progress.rate.value
        ways.append(Way(workload=workload.name, offer=None, assignment=assignment, duration_s=left / speed))
    restart_s = workload.restart_cost_s if progress.has_started else 0.0
    twin = None if assignment is None else next((offer for offer in offers if _is_as_now(offer, assignment)), None)
    if twin is not None and twin.rate is not None and progress.rate is not None:
        # Off by a factor here, a table or a forecast is taken to be off by it on other counts of the type, too.
        offers = [_corrected(offer, twin, progress.rate.value / twin.rate.value) for offer in offers]
        twin = next(offer for offer in offers if offer.shape == twin.shape)
    result_offers = []
    for offer in offers:
        if offer is twin:  # to stay is a way already; on other GPUs, or later, it needs a restart
            result_offers.append(offer)
            if offer.refusal is None and workload.preemptible:
                duration_s = restart_s + left / offer.speed(is_pessimistic=is_pessimistic)
                if _limit_refusal(workload, cluster, offer.gpu_type, offer.num_gpus, duration_s) is None:
                    ways.append(Way(workload=workload.name, offer=offer, assignment=None, duration_s=duration_s, restart_s=restart_s))
            continue
        if offer.refusal is None and assignment is not None and not workload.preemptible:
            offer = dataclasses.replace(offer, refusal="it runs and is not preemptible")
        if offer.refusal is None:
            duration_s = restart_s + left / offer.speed(is_pessimistic=is_pessimistic)
            refusal = _limit_refusal(workload, cluster, offer.gpu_type, offer.num_gpus, duration_s)
            offer = dataclasses.replace(offer, refusal=refusal)
            if refusal is None:
                ways.append(Way(workload=workload.name, offer=offer, assignment=None, duration_s=duration_s, restart_s=restart_s))
        result_offers.append(offer)
    if assignment is not None and len(ways) > 1 and not _is_still_allowed(workload, assignment):
        del ways[0]
    best = max((_per_money(cluster, way, left) for way in ways), default=0.0)
    choices = []
    for way in ways:
        gpu_type, num_nodes, num_gpus = way_shape(way)
        money = _money(cluster, gpu_type, num_gpus, way.duration_s)
        stays = way.assignment
        latest_start_s = _deadline_s(workload) - way.duration_s
        if stays is not None and _limit_refusal(workload, cluster, gpu_type, num_gpus, way.duration_s) is not None:
            latest_start_s = -float("inf")
        choices.append(
            Choice(
                gpu_type=gpu_type,
                num_nodes=num_nodes,
                num_gpus=num_gpus,
                duration_s=way.duration_s,
                tail_s=workload.weight * way.duration_s,
                money=money or 0.0,
                merit=workload.weight * _per_money(cluster, way, left) / best if best > 0 else 0.0,
                latest_start_s=latest_start_s,
                nodes=None if stays is None else _place_of(stays).nodes,
                start_s=None if stays is None else 0.0,
            )
        )
    task = Task(name=workload.name, weight=workload.weight, choices=tuple(choices), planned=None if planned is None else _place_of(planned))
    return BuiltTask(task=WorkloadTask(task=task, ways=tuple((way,) for way in ways)), offers=tuple(result_offers))


def _place_of(assignment: Assignment) -> Planned:
    shape = (assignment.gpu_type, assignment.num_nodes, assignment.num_gpus)
    return Planned(start_s=assignment.start_s, shape=shape, nodes=tuple(sorted({device.node for device in assignment.devices})))


def _is_still_allowed(workload: Workload, assignment: Assignment) -> bool:
    """By what the workload may have now, which may have changed since it started."""
    return (
        workload.min_gpus <= assignment.num_gpus <= workload.max_gpus
        and (workload.gpu_types is None or assignment.gpu_type in workload.gpu_types)
        and assignment.strategy in workload.strategies
        and assignment.precision in workload.precisions
        and (workload.hooks is None or assignment.hook in workload.hooks)
    )


def _is_as_now(offer: Offer, assignment: Assignment) -> bool:
    settings = ("strategy", "precision", "hook", "per_device_batch_size", "grad_accum_steps")
    return offer.shape == _place_of(assignment).shape and all(getattr(offer, name) == getattr(assignment, name) for name in settings)


def _corrected(offer: Offer, twin: Offer, factor: float) -> Offer:
    rate = offer.rate
    if rate is None or offer.gpu_type != twin.gpu_type or not rate.source.startswith(("table", "forecast")):
        return offer
    scaled = dataclasses.replace(rate, value=rate.value * factor, low=rate.low * factor, high=rate.high * factor)
    return dataclasses.replace(offer, rate=scaled)


def way_shape(way: Way) -> tuple[str, int, int]:
    """(GPU type, nodes, GPUs)."""
    if way.assignment is not None:
        return way.assignment.gpu_type, way.assignment.num_nodes, way.assignment.num_gpus
    assert way.offer is not None
    return way.offer.shape


def shared_tasks(
    a: BuiltTask, b: BuiltTask, entry: Sharing, workloads: Mapping[str, Workload], cluster: ClusterFile
) -> WorkloadTask | None:
    """Both workloads on one GPU of the type at the same time; None where they may not or do not fit beside each other.

    Each is slower by its measured factor until the first has ended.
    """
    memory_gib = cluster.nodes_of(entry.gpu_type)[0].memory_gib if entry.gpu_type in cluster.gpu_types else None
    pairs = []
    for built in (a, b):
        workload = workloads[built.task.task.name]
        pairs.append(
            next(
                (
                    ways[0]
                    for ways in built.task.ways
                    if ways[0].offer is not None and ways[0].offer.shape == (entry.gpu_type, 1, 1) and workload.may_share_gpu
                ),
                None,
            )
        )
    first, second = pairs
    if first is None or second is None or memory_gib is None or first.offer is None or second.offer is None:
        return None
    if first.offer.memory_gib is None or second.offer.memory_gib is None:
        return None
    if first.offer.memory_gib + second.offer.memory_gib > USABLE_SHARE * memory_gib:
        return None
    slow = {way.workload: way.duration_s * entry.slowdown[way.workload] for way in (first, second)}
    quick, other = sorted((first, second), key=lambda way: slow[way.workload])
    until_s = slow[quick.workload]
    rest_s = other.duration_s - until_s / entry.slowdown[other.workload]
    ends = {quick.workload: until_s, other.workload: until_s + rest_s}
    duration_s = max(ends.values())
    for name, end_s in ends.items():
        deadline_h = workloads[name].deadline_h
        if deadline_h is not None and end_s > deadline_h * _HOUR_S:
            return None
    latest_s = min((_deadline_s(workloads[name]) - end_s for name, end_s in ends.items()), default=float("inf"))
    money = _money(cluster, entry.gpu_type, 1, duration_s) or 0.0
    choice = Choice(
        gpu_type=entry.gpu_type,
        num_nodes=1,
        num_gpus=1,
        duration_s=duration_s,
        tail_s=sum(workloads[name].weight * end_s for name, end_s in ends.items()),
        money=money,
        merit=sum(workloads[name].weight for name in ends),
        latest_start_s=latest_s,
    )
    ways = tuple(dataclasses.replace(way, duration_s=ends[way.workload]) for way in (first, second))
    name = "+".join(sorted(ends))
    return WorkloadTask(task=Task(name=name, weight=sum(workloads[each].weight for each in ends), choices=(choice,)), ways=(ways,))


def sharing_on(tasks: Sequence[WorkloadTask], workloads: Mapping[str, Workload]) -> list[WorkloadTask]:
    """The tasks, those that run on one GPU together made one, which stays."""
    by_name = {task.task.name: task for task in tasks}
    result, seen = [], set[str]()
    for name, task in by_name.items():
        if name in seen:
            continue
        stay = task.ways[0][0].assignment
        partners = [each for each in stay.shares_gpu_with if each in by_name and by_name[each].ways[0][0].assignment] if stay else []
        if not partners:
            result.append(task)
            continue
        members = [by_name[each] for each in (name, *partners)]
        seen |= {member.task.name for member in members}
        first = [member.task.choices[0] for member in members]
        choice = dataclasses.replace(
            first[0],
            duration_s=max(each.duration_s for each in first),
            tail_s=sum(each.tail_s for each in first),
            money=max(each.money for each in first),
            merit=sum(each.merit for each in first),
            latest_start_s=min(each.latest_start_s for each in first),
        )
        joined = Task(
            name="+".join(sorted(member.task.name for member in members)),
            weight=sum(member.task.weight for member in members),
            choices=(choice,),
        )
        result.append(WorkloadTask(task=joined, ways=(tuple(member.ways[0][0] for member in members),)))
    return result


def _deadline_s(workload: Workload) -> float:
    return float("inf") if workload.deadline_h is None else workload.deadline_h * _HOUR_S


def _limit_refusal(workload: Workload, cluster: ClusterFile, gpu_type: str, num_gpus: int, duration_s: float) -> str | None:
    if workload.deadline_h is not None and duration_s > workload.deadline_h * _HOUR_S:
        return f"too slow: {duration_s / _HOUR_S:.2f} h, the deadline is in {workload.deadline_h:g} h"
    money = _money(cluster, gpu_type, num_gpus, duration_s)
    if workload.budget is not None:
        if money is None:
            return f"its budget is in {workload.budget.currency} and the cluster file has no price for {gpu_type}"
        if workload.budget.currency != cluster.currency:
            return f"its budget is in {workload.budget.currency} and the cluster's prices are in {cluster.currency}"
        if money > workload.budget.value:
            return f"over its budget: {money:.2f} of {workload.budget.value:g} {workload.budget.currency}"
    return None


def _money(cluster: ClusterFile, gpu_type: str, num_gpus: int, duration_s: float) -> float | None:
    price = cluster.price_of(gpu_type)
    return None if price is None else price * num_gpus * duration_s / _HOUR_S


def _per_money(cluster: ClusterFile, way: Way, samples: float) -> float:
    gpu_type, _, num_gpus = way_shape(way)
    money = _money(cluster, gpu_type, num_gpus, way.duration_s)
    return samples / money if money else 0.0


def make_measuring_task(workload: Workload, offers: Sequence[Offer], cluster: ClusterFile, weight: float) -> WorkloadTask | None:
    """The short slot in which an unknown rate is measured, on the smallest gang of each type that it may have."""
    choices, ways = [], []
    if any(offer.rate is not None for offer in offers):
        return None  # what it can do is known and is not enough
    for gpu_type in dict.fromkeys(offer.gpu_type for offer in offers if offer.is_unknown):
        smallest = min((offer for offer in offers if offer.is_unknown and offer.gpu_type == gpu_type), key=lambda each: each.num_gpus)
        if smallest.num_nodes > 1 or not any(len(node.available) >= smallest.num_gpus for node in cluster.nodes_of(gpu_type)):
            continue  # `gpualloc bench` measures one machine
        choices.append(
            Choice(
                gpu_type=gpu_type,
                num_nodes=1,
                num_gpus=smallest.num_gpus,
                duration_s=MEASURING_S,
                tail_s=weight * MEASURING_S,
                money=_money(cluster, gpu_type, smallest.num_gpus, MEASURING_S) or 0.0,
                merit=0.0,
            )
        )
        ways.append((Way(workload=workload.name, offer=smallest, assignment=None, duration_s=MEASURING_S),))
    if not choices:
        return None
    return WorkloadTask(task=Task(name=f"measure:{workload.name}", weight=weight, choices=tuple(choices)), ways=tuple(ways))


def measuring_command(workload: Workload, offer: Offer, device: str) -> tuple[str, ...]:
    """The `gpualloc bench` that puts the missing rate into the store."""
    size = (
        ("--image-size", str(workload.image_size_px)) if workload.kind == "image" else ("--sequence-length", str(workload.sequence_length))
    )
    strategies = [name for name in workload.strategies if name == "single" or name in strategies_for(workload, offer.num_gpus)]
    words = ["gpualloc", "bench", "--device", device, "--workload", workload.kind, "--model", workload.model, *size]
    words += ["--precision", ",".join(workload.precisions), "--strategy", ",".join(strategies)]
    if offer.num_gpus > 1 and device == "cuda":
        words += ["--gpus", str(offer.num_gpus)]
    if "ddp" in strategies:
        words += ["--hook", ",".join(workload.hooks or ["none"])]
    if workload.tuning != "full":
        words += ["--tuning", workload.tuning]
    share = workload.batch.reference // offer.num_gpus
    if workload.batch.max_per_device_batch_size is not None:
        share = min(share, workload.batch.max_per_device_batch_size)
    most = _MOST_MEASURED_BATCH[device]
    if workload.batch.global_batch_size is not None:
        share = next(size for size in range(min(max(share, 1), most), 0, -1) if max(share, 1) % size == 0)
    words += ["--batch-size", str(max(1, min(share, most))), "--on-oom", "halve"]
    return tuple(words)


_MOST_MEASURED_BATCH = {"cuda": 64, "cpu": 8}  # samples: as the defaults of the built-in models
