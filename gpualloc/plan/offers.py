"""What a workload could run as: each GPU type and count with its best strategy, precision and batch, or why it is not to be had."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from gpualloc.plan.cluster_file import ClusterFile, ClusterNode
from gpualloc.plan.fitting import MemoryOf
from gpualloc.plan.rates import Knowledge, KnownRate, find_rates, no_strategy_text, strategies_for
from gpualloc.plan.records import PlannedRate
from gpualloc.plan.workloads import BatchPolicy, Workload
from gpualloc.records import BenchCase
from gpualloc.strategies import data_ranks, unsupported_reason

DEFAULT_MIN_EFFICIENCY = 0.5  # of linear scaling: below it more than half of the added GPU time is lost


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One way to run a workload. With a `refusal` it is shown and not chosen."""

    workload: str
    gpu_type: str
    num_nodes: int
    num_gpus: int
    refusal: str | None
    strategy: str | None = None
    precision: str | None = None
    hook: str = "none"
    per_device_batch_size: int = 0
    grad_accum_steps: int = 1
    learning_rate_factor: float = 1.0
    rate: PlannedRate | None = None
    memory_gib: float | None = None
    memory_source: str = "unknown"
    is_unknown: bool = False  # refused for want of a rate or of a memory figure, which measuring would give

    def speed(self, *, is_pessimistic: bool) -> float:
        """Samples per second to plan with."""
        assert self.rate is not None
        return self.rate.low if is_pessimistic else self.rate.value

    @property
    def shape(self) -> tuple[str, int, int]:
        return self.gpu_type, self.num_nodes, self.num_gpus


def shapes_of(workload: Workload, cluster: ClusterFile, gpu_type: str) -> list[tuple[int, int]]:
    """(nodes, GPUs) to consider: powers of two, whole nodes, the ends of what is allowed and the table's, the fewest nodes for each."""
    nodes = cluster.nodes_of(gpu_type)
    largest, total = max(node.num_gpus for node in nodes), sum(node.num_gpus for node in nodes)
    table = {(row.num_nodes, row.num_gpus) for row in workload.rates if row.gpu_type == gpu_type}
    counts = {2**power for power in range(total.bit_length())} | {largest * number for number in range(1, len(nodes) + 1)}
    counts |= {workload.min_gpus, min(workload.max_gpus, total)}
    shapes = set(table)
    for count in counts:
        needed = next((number for number in range(1, len(nodes) + 1) if count % number == 0 and count // number <= largest), None)
        if needed is not None:
            shapes.add((needed, count))
    return sorted(
        ((nodes, gpus) for nodes, gpus in shapes if workload.min_gpus <= gpus <= workload.max_gpus), key=lambda shape: (shape[1], shape[0])
    )


def find_offers(
    workload: Workload, cluster: ClusterFile, knowledge: Knowledge, *, min_efficiency: float, is_pessimistic: bool
) -> list[Offer]:
    """All that was considered, by type and count; of each type, nodes and count the fastest that fits, or one refusal."""
    memory = MemoryOf(workload, knowledge.measurements_of(workload))
    offers: list[Offer] = []
    for gpu_type in workload.gpu_types or cluster.gpu_types:
        if gpu_type not in cluster.gpu_types:
            refusal = f"the cluster has no {gpu_type}, only {', '.join(cluster.gpu_types)}"
            offers.append(Offer(workload=workload.name, gpu_type=gpu_type, num_nodes=1, num_gpus=workload.min_gpus, refusal=refusal))
            continue
        shapes = shapes_of(workload, cluster, gpu_type)
        if not shapes:
            total = sum(node.num_gpus for node in cluster.nodes_of(gpu_type))
            refusal = f"needs {workload.min_gpus} GPUs or more, the cluster has {total}"
            offers.append(Offer(workload=workload.name, gpu_type=gpu_type, num_nodes=1, num_gpus=workload.min_gpus, refusal=refusal))
        rates = find_rates(workload, cluster, gpu_type, shapes, knowledge)
        of_type = [
            _offer(workload, cluster, gpu_type, shape, [rate for rate in rates if (rate.num_nodes, rate.num_gpus) == shape], memory)
            for shape in shapes
        ]
        threshold = workload.min_efficiency if workload.min_efficiency is not None else min_efficiency
        offers += _without_waste(of_type, threshold, is_pessimistic=is_pessimistic)
    return offers


def _offer(
    workload: Workload, cluster: ClusterFile, gpu_type: str, shape: tuple[int, int], rates: Sequence[KnownRate], memory: MemoryOf
) -> Offer:
    nodes, gpus = shape
    blank = Offer(workload=workload.name, gpu_type=gpu_type, num_nodes=nodes, num_gpus=gpus, refusal=None)
    slot_refusal = _slot_refusal(cluster, gpu_type, nodes, gpus)
    found = [_rated(workload, cluster.nodes_of(gpu_type)[0], blank, rate, memory) for rate in rates]
    able = [offer for offer in found if offer.refusal is None]
    if able:
        best = max(able, key=lambda offer: (offer.speed(is_pessimistic=False), offer.per_device_batch_size))
        return dataclasses.replace(best, refusal=slot_refusal)
    if slot_refusal is not None:
        return dataclasses.replace(blank, refusal=slot_refusal)
    hopeless = _hopeless(workload, cluster.nodes_of(gpu_type)[0], gpus)
    if found:
        nearest = next((offer for offer in found if not offer.is_unknown), found[0])
        return dataclasses.replace(nearest, is_unknown=nearest.is_unknown and hopeless is None)
    if hopeless is not None:
        return dataclasses.replace(blank, refusal=hopeless)
    refusal = f"its rate is unknown: neither in a table nor measured nor forecast{_table_text(workload, gpu_type)}"
    return dataclasses.replace(blank, refusal=refusal, is_unknown=True)


def _table_text(workload: Workload, gpu_type: str) -> str:
    """What a table has that is of no use here, so that a misspelt type is seen."""
    of_type = [row for row in workload.rates if row.gpu_type == gpu_type]
    if not workload.rates or any(workload.min_gpus <= row.num_gpus <= workload.max_gpus for row in of_type):
        return ""
    if of_type:
        counts = ", ".join(str(count) for count in sorted({row.num_gpus for row in of_type}))
        return f" (its table has {counts} x {gpu_type}, it may have {workload.min_gpus} to {workload.max_gpus})"
    return f" (its table has {', '.join(dict.fromkeys(row.gpu_type for row in workload.rates))})"


def _hopeless(workload: Workload, node: ClusterNode, gpus: int) -> str | None:
    """Why no rate would let it run on that many GPUs."""
    strategies = strategies_for(workload, gpus)
    if not strategies:
        return no_strategy_text(workload, gpus)
    cases = [KnownRate(num_nodes=1, num_gpus=gpus, strategy=strategy, precision=workload.precisions[0]) for strategy in strategies]
    ranks = [num_data_ranks(workload, node, case) for case in cases]
    if any(divide_batch(workload.batch, each, 1) for each in ranks):
        return None
    return _undivided_text(workload.batch, min(ranks))


def _slot_refusal(cluster: ClusterFile, gpu_type: str, nodes: int, gpus: int) -> str | None:
    """Why there is no such slot, however long one waits; GPUs that are reserved or busy do not count."""
    if nodes > 1 and cluster.network is None:
        return "spans nodes, and the cluster file names no network"
    free = sorted((len(node.available) for node in cluster.nodes_of(gpu_type)), reverse=True)
    each = gpus // nodes
    if sum(count >= each for count in free) >= nodes:
        return None
    there = " + ".join(map(str, free))
    where = f"a node with {each} free" if nodes == 1 else f"{nodes} nodes with {each} free each"
    return f"needs {where}, there are {there}"


def _rated(workload: Workload, node: ClusterNode, blank: Offer, known: KnownRate, memory: MemoryOf) -> Offer:
    """The offer of one known rate: with the largest batch that is allowed and fits, or why there is none."""
    offer = dataclasses.replace(blank, strategy=known.strategy, precision=known.precision, hook=known.hook)
    if known.refusal is not None:
        return dataclasses.replace(offer, refusal=known.refusal, is_unknown=True)
    case = _case(workload, node, known, per_device_batch_size=known.per_device_batch_size or 1)
    problem = unsupported_reason(case, num_gpus=known.num_gpus) if known.strategy not in ("single", "ddp") else None
    if problem is not None:
        return dataclasses.replace(offer, refusal=problem)
    ranks = data_ranks(case)
    sizes = [known.per_device_batch_size] if known.per_device_batch_size else batch_sizes(workload.batch, ranks)
    refusal, is_unknown = _undivided_text(workload.batch, ranks), False
    for size in sizes:
        batch = divide_batch(workload.batch, ranks, size)
        if batch is None:
            refusal = f"{size} samples a rank, as measured, do not make {_batch_text(workload.batch)} on {ranks} ranks"
            continue
        fit = memory.fit(_case(workload, node, known, per_device_batch_size=size), node, stated_gib=known.memory_gib)
        if fit.reason is not None:
            refusal, is_unknown = fit.reason, fit.source == "unknown"
            offer = dataclasses.replace(offer, memory_gib=fit.memory_gib)
            continue
        accum, global_size = batch
        return dataclasses.replace(
            offer,
            refusal=None,
            per_device_batch_size=size,
            grad_accum_steps=accum,
            learning_rate_factor=workload.batch.learning_rate_factor(global_size),
            rate=known.samples_per_s(accum, global_size),
            memory_gib=fit.memory_gib,
            memory_source=fit.source,
        )
    return dataclasses.replace(offer, refusal=refusal, is_unknown=is_unknown)


def num_data_ranks(workload: Workload, node: ClusterNode, known: KnownRate) -> int:
    """How many times the batch of one GPU makes up a step's."""
    return data_ranks(_case(workload, node, known, per_device_batch_size=1))


def batch_sizes(policy: BatchPolicy, ranks: int) -> list[int]:
    """Samples of one backward pass to try, the largest first."""
    low, high = policy.bounds
    most = min(high // ranks, policy.max_per_device_batch_size or high)
    if low == high:
        share = high // ranks if high % ranks == 0 else 0
        return [size for size in range(min(share, most), 0, -1) if share % size == 0]
    return [2**power for power in range(max(most, 1).bit_length() - 1, -1, -1) if 2**power <= most]


def divide_batch(policy: BatchPolicy, ranks: int, size: int) -> tuple[int, int] | None:
    """(backward passes per step, global batch) for `size` samples of one pass; None where the policy allows none."""
    low, high = policy.bounds
    if policy.max_per_device_batch_size is not None and size > policy.max_per_device_batch_size:
        return None
    accum = max(1, -(-low // (size * ranks)))
    global_size = accum * size * ranks
    return (accum, global_size) if low <= global_size <= high else None


def _undivided_text(policy: BatchPolicy, ranks: int) -> str:
    return f"no batch of {_batch_text(policy)} can be divided among {ranks} ranks"


def _batch_text(policy: BatchPolicy) -> str:
    low, high = policy.bounds
    return f"a global batch of {low}" if low == high else f"a global batch of {low} to {high}"


def _case(workload: Workload, node: ClusterNode, known: KnownRate, *, per_device_batch_size: int) -> BenchCase:
    return BenchCase(
        workload=workload.kind,
        model=workload.model,
        image_size_px=workload.image_size_px,
        sequence_length=workload.sequence_length,
        per_device_batch_size=per_device_batch_size,
        precision=known.precision,
        strategy=known.strategy,
        hook=known.hook,
        device=node.device,
        world_size=known.num_gpus,
        ranks_per_gpu=1,
        data="synthetic",
        num_warmup_steps=0,
        num_steps=1,
        num_repeats=1,
        seed=0,
        tuning=workload.tuning,
    )


def _without_waste(offers: Sequence[Offer], threshold: float, *, is_pessimistic: bool) -> list[Offer]:
    """The same offers of one type, with those refused whose GPUs won't pay: against the smallest count that can be had."""
    kept: list[Offer] = []
    result = []
    for offer in offers:
        if offer.refusal is None and kept:
            speed, first = offer.speed(is_pessimistic=is_pessimistic), kept[0]
            gain = speed / first.speed(is_pessimistic=is_pessimistic)
            efficiency = gain * first.num_gpus / offer.num_gpus
            rival = next(
                (each for each in kept if each.num_gpus <= offer.num_gpus and each.speed(is_pessimistic=is_pessimistic) >= speed), None
            )
            if rival is not None:
                refusal = f"won't pay: no faster than {rival.num_gpus} GPU{'s' if rival.num_gpus > 1 else ''}"
                offer = dataclasses.replace(offer, refusal=refusal)
            elif efficiency < threshold:
                than = f"{first.num_gpus} GPU{'s' if first.num_gpus > 1 else ''}"
                refusal = f"won't pay: {gain:.2f} times as fast as {than}, {efficiency:.0%} efficiency, threshold {threshold:.0%}"
                offer = dataclasses.replace(offer, refusal=refusal)
        if offer.refusal is None:
            kept.append(offer)
        result.append(offer)
    return result
