"""A verdict in words: the evidence, and the next step to try, with figures of the profile at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpualloc.profiling.records import PARTS, RankProfile

_FAR = 3.0  # times the roofline's time; training that is well tuned takes 1.5 to 2.5 times
_ROUNDING = 0.05  # of a worker: not one more for that
_PART_NAMES = {
    "input_wait_s": "waiting for input",
    "host_to_device_s": "copies from the host",
    "kernels_s": "computing",
    "optimizer_s": "the optimizer",
    "other_memory_s": "copies on the device",
    "launch_gap_s": "launch gaps",
}


def describe(kind: str, share: float, ranks: Sequence[RankProfile]) -> tuple[tuple[str, ...], str, str]:
    """(evidence, next step, the sentence that has both) of a verdict."""
    evidence, next_step = _WORDS[kind](share, ranks)
    return evidence, next_step, f"{kind}: {evidence[0]}; {next_step}"


def _input(share: float, ranks: Sequence[RankProfile]) -> tuple[tuple[str, ...], str]:
    rank = min(ranks, key=lambda each: each.times.input_wait_s + each.times.host_to_device_s)
    times = rank.times
    evidence: tuple[str, ...]
    if times.host_to_device_s > times.input_wait_s:
        evidence = (f"{share:.0%} of the step waits for batches to be copied to the GPU",)
        if rank.loader is not None and not rank.loader.pin_memory:
            return evidence, "try pin_memory=True and non_blocking=True before more GPUs"
        return evidence, "try smaller batches on the wire, as uint8 or half, and convert them on the GPU"
    evidence = (f"{share:.0%} of the step waits for the loader",)
    if rank.loader is None:
        return evidence, "prepare batches ahead, as a DataLoader with num_workers does, before more GPUs"
    before = rank.loader.num_workers
    evidence += (f"a DataLoader with {_workers(before)} on {rank.num_cpus} cores, {times.input_wait_s * 1e3:.1f} ms a batch waited for",)
    needed = _needed_workers(rank)
    instead = "" if before == 0 else f" instead of {before}"
    if needed <= rank.num_cpus:
        return evidence, f"try {_workers(needed)}{instead} before more GPUs"
    cheaper = f"hiding it all takes about {needed} workers and here are {rank.num_cpus} cores, so make a batch cheaper to load"
    return evidence, f"try {_workers(rank.num_cpus)}{instead}; {cheaper}" if before < rank.num_cpus else cheaper


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _needed_workers(rank: RankProfile) -> int:
    """Workers that load as fast as the rest of the step consumes, if each loads as fast as those do now."""
    assert rank.loader is not None
    step_s, wait_s = rank.times.step_time_s, rank.times.input_wait_s
    load_s = wait_s if rank.loader.num_workers == 0 else step_s * rank.loader.num_workers  # for one batch, by one worker
    return max(rank.loader.num_workers + 1, math.ceil(load_s / max(step_s - wait_s, 1e-6) - _ROUNDING))


def _launch(share: float, ranks: Sequence[RankProfile]) -> tuple[tuple[str, ...], str]:
    rank = max(ranks, key=lambda each: each.times.launch_gap_s)
    mean_us = rank.times.computing_s * 1e6 / max(rank.times.num_launches, 1)
    if rank.device == "cpu":
        evidence = (
            f"{share:.0%} of the step is Python and dispatch around {rank.times.num_launches:.0f} operators",
            f"an operator works for {mean_us:.1f} us on average",
        )
        return evidence, "try larger batches, fewer and larger operators, or torch.compile"
    evidence = (
        f"the GPU idles for {share:.0%} of the step between {rank.times.num_launches:.0f} kernels of {mean_us:.0f} us",
        f"the host waits for the GPU {rank.times.num_synchronisations:.1f} times a step",
    )
    if rank.times.num_synchronisations >= 2:  # one is usual: a loss that is read, a GradScaler
        return evidence, (
            f"remove what makes the host wait, {rank.times.num_synchronisations:.0f} times a step (.item(), .cpu(), print), then try "
            'larger batches or torch.compile(mode="reduce-overhead")'
        )
    return evidence, 'try larger batches, or torch.compile(mode="reduce-overhead"), which replays CUDA graphs, before more GPUs'


def _compute(share: float, ranks: Sequence[RankProfile]) -> tuple[tuple[str, ...], str]:
    rank = max(ranks, key=lambda each: each.times.computing_s)
    evidence: tuple[str, ...] = (f"the {_device(rank)} computes for {share:.0%} of the step{_arithmetic(rank)}",)
    if rank.times.computing_s > 0:
        evidence += (f"matrix products and convolutions take {rank.times.matmul_s / rank.times.computing_s:.0%} of it",)
    evidence += _distance(rank)
    if rank.costs is not None and {"fp32", "fp64", "tf32"} & set(rank.costs.flops) and rank.device == "cuda":
        return evidence, "try bf16 autocast, then more GPUs"
    return evidence, "more GPUs will pay as long as communication stays hidden: gpualloc bench --strategy single,ddp"


def _arithmetic(rank: RankProfile) -> str:
    if rank.mfu is not None:
        return f" at {rank.mfu:.0%} of its peak FLOP/s"
    if rank.flops_per_s is not None and rank.speed is not None:
        return f" at {rank.flops_per_s / rank.speed.matmul_flops_per_s:.0%} of what a large {rank.speed.matmul_format} product reaches here"
    return ""


def _distance(rank: RankProfile) -> tuple[str, ...]:
    """Said where the device is far from either bound."""
    if rank.costs is None or rank.costs.roofline_s is None or rank.times.computing_s < _FAR * rank.costs.roofline_s:
        return ()
    factor = rank.times.computing_s / rank.costs.roofline_s
    return (f"computing takes {factor:.1f} times what the roofline allows: its kernels are slow, or others use the device",)


def _memory(share: float, ranks: Sequence[RankProfile]) -> tuple[tuple[str, ...], str]:
    rank = max(ranks, key=lambda each: each.times.computing_s)
    evidence: tuple[str, ...] = ()
    if rank.utilisation is not None and rank.utilisation.dram is not None:
        evidence += (f"the GPU's memory runs at {rank.utilisation.dram:.0%} of its peak bandwidth",)
    if rank.costs is not None and rank.costs.memory_share is not None:
        evidence += (f"{rank.costs.memory_share:.0%} of the computing, by its roofline, moves bytes rather than calculates",)
    if rank.costs is not None and rank.speed is not None:
        moved = rank.costs.moved_bytes / rank.times.computing_s
        evidence += (f"{moved / 1e9:.0f} GB/s of operands, of {rank.speed.copy_bytes_per_s / 1e9:.0f} GB/s that a copy reaches here",)
        evidence += _distance(rank)
    if not evidence:
        part = 1 - rank.times.matmul_s / max(rank.times.computing_s, 1e-12)
        evidence = (f"{part:.0%} of the computing is outside matrix products and convolutions",)
    return evidence, "fuse elementwise operators with torch.compile, or halve the bytes with bf16, before more GPUs"


def _communication(share: float, ranks: Sequence[RankProfile]) -> tuple[tuple[str, ...], str]:
    rank = min(ranks, key=lambda each: each.times.exposed_comm_s)
    overlap = rank.times.overlap_ratio or 0.0
    evidence = (
        f"on every rank {share:.0%} of the step or more waits for communication that no computing hides",
        f"{overlap:.0%} of the communication is hidden",
    )
    return evidence, "halve the bytes with gpualloc.register_comm_hook(model), or exchange less often (accumulation, larger batches)"


def _imbalance(share: float, ranks: Sequence[RankProfile]) -> tuple[tuple[str, ...], str]:
    def own_s(rank: RankProfile) -> float:
        return rank.times.step_time_s - rank.times.exposed_comm_s

    slow, fast = max(ranks, key=own_s), min(ranks, key=own_s)
    difference_s = {name: getattr(slow.times, name) - getattr(fast.times, name) for name in PARTS if name in _PART_NAMES}
    where = max(difference_s, key=lambda name: difference_s[name])
    evidence = (
        f"rank {slow.rank} works {own_s(slow) / max(own_s(fast), 1e-9):.1f} times as long as rank {fast.rank}, and equal work would "
        f"save {share:.0%} of the step",
        f"most of the difference is {_PART_NAMES[where]}: {difference_s[where] * 1e3:.1f} ms a step",
    )
    if where == "input_wait_s":
        return evidence, f"look at rank {slow.rank}'s data: its loader is slower than the others'"
    return (
        evidence,
        f"give rank {slow.rank} less work (batches of equal cost, sequences of equal length), or look at its clocks and neighbours",
    )


def _device(rank: RankProfile) -> str:
    return "GPU" if rank.device == "cuda" else "CPU"


_WORDS = {
    "input-bound": _input,
    "launch-bound": _launch,
    "compute-bound": _compute,
    "memory-bound": _memory,
    "communication-bound": _communication,
    "imbalance": _imbalance,
}
