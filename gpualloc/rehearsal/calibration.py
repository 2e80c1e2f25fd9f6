"""Measures a real link: nccl-tests' method over the process group at hand, NCCL or gloo, turned into a link model.

Every size runs several times after a warm-up; the time of a collective is the slowest rank's, and the median of the repeats counts.
https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from gpualloc.rehearsal.link_model import HopLatency, HostCost, LinkModel, MeasuredCollectives

Show = Callable[[str], None]
Curve = list[tuple[float, float]]
Probe = tuple[Callable[[], None], Callable[[], object]]  # one collective; what puts its data back, so that sums do not grow to inf

MIN_BYTES, DEFAULT_MAX_BYTES = 2**10, 2**28
_FACTOR = 4  # between sizes
_NUM_WARMUP, _MIN_REPEATS, _MAX_REPEATS = 2, 3, 50
_SIZE_BUDGET_S = 1.0  # of one size, once it has its least number of repeats
_SLOW_S = 0.4  # of one collective: larger ones are not measured, beyond it time grows with bytes
_CAPACITY_S = 0.1  # of the one that several at a time are tried with
_GROUPS = (1, 2, 4)  # collectives at a time, for the link's capacity
_HOST_COST_SIZES = (2**16, 2**22)
_HOST_COST_S = 1.0  # for which computing goes on beside collectives
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured with."""

    name: str
    device: torch.device
    level: Literal["node", "network"]
    max_bytes: int
    source: str  # where and when, for the file
    show: Show = lambda text: None


def calibrate(group: dist.ProcessGroup, setting: Setting) -> LinkModel:
    """The model of the link between the ranks of `group`, all of which call this and get the same.

    Args:
        group: its ranks are all on one node (level "node") or each on its own (level "network").
    """
    num_ranks = group.size()
    is_gloo = setting.device.type == "cpu"
    dtypes = [torch.float32, torch.float16, torch.bfloat16] if is_gloo else [torch.float32]
    seconds: dict[str, Curve] = {}
    for dtype in dtypes:
        name = "all_reduce" if dtype is torch.float32 else f"all_reduce/{str(dtype).removeprefix('torch.')}"
        seconds[name] = _curve(name, lambda numel, dtype=dtype: _all_reduce(numel, dtype, group, setting), group, setting)  # type: ignore[misc]
    seconds["all_gather"] = _curve("all_gather", lambda numel: _all_gather(numel, group, setting), group, setting)
    seconds["reduce_scatter"] = _curve("reduce_scatter", lambda numel: _reduce_scatter(numel, group, setting), group, setting)
    seconds["broadcast"] = _curve("broadcast", lambda numel: _broadcast(numel, group, setting), group, setting)
    seconds["point_to_point"] = _curve("point_to_point", lambda numel: _exchange(numel, group, setting), group, setting)
    host_cost = _host_costs(dtypes, group, setting) if is_gloo else {}
    fast_enough = [size for size, time_s in seconds["all_reduce"] if time_s <= _CAPACITY_S]
    capacity_gb_s = _capacity(group, setting, int(max(fast_enough, default=MIN_BYTES)))
    return LinkModel(
        name=setting.name,
        title=f"measured between {num_ranks} ranks with {'gloo' if is_gloo else 'NCCL'}",
        level=setting.level,
        **fit_all_reduces(seconds, num_ranks),
        capacity_gb_s=capacity_gb_s,
        nics_per_node="per_gpu",
        algorithm="ring" if is_gloo else "auto",
        collectives_in_flight=2 if is_gloo else 1,  # ProcessGroupGloo has two threads
        measured=MeasuredCollectives(num_ranks=num_ranks, ranks_per_node=num_ranks if setting.level == "node" else 1, seconds=seconds),
        host_cost=host_cost,
        sources=[setting.source],
    )


def fit_all_reduces(seconds: dict[str, Curve], num_ranks: int) -> dict[str, Any]:
    """Latencies and bandwidths of a `LinkModel`, by name, from measured times.

    A message is one step, an all-reduce 2 (n - 1). Latency is the shortest time of all sizes, since small ones may take longer than
    larger ones do: the first to run, or by another algorithm. Bandwidths begin where transfer is at least a tenth of the time.
    """
    curve = seconds["all_reduce"]
    all_reduce_s, message_s = (min(time_s for _, time_s in seconds[name]) for name in ("all_reduce", "point_to_point"))
    num_steps = 2 * (num_ranks - 1)
    hop_s = max(0.0, (all_reduce_s - message_s) / (num_steps - 1))
    base_s = max(0.0, all_reduce_s - num_steps * hop_s)
    hop_us = round(hop_s * 1e6, 3)
    factor = 2 * (num_ranks - 1) / num_ranks
    beyond = curve[[time_s for _, time_s in curve].index(all_reduce_s) + 1 :]
    busbw = [(size, factor * size / (time_s - all_reduce_s) / _GB) for size, time_s in beyond if time_s - all_reduce_s > 0.1 * time_s]
    busbw = busbw or [(curve[-1][0], factor * curve[-1][0] / curve[-1][1] / _GB)]
    busbw_gb_s = busbw[-1][1]  # which larger ones keep
    return {
        "busbw_gb_s": busbw_gb_s,
        "base_latency_us": round(base_s * 1e6, 3),
        "hop_latency_us": HopLatency(ring=hop_us, tree=hop_us),
        "efficiency": [(size, min(1.0, value / busbw_gb_s)) for size, value in busbw],
    }


def _curve(name: str, make: Callable[[int], Probe], group: dist.ProcessGroup, setting: Setting) -> Curve:
    """[bytes, seconds] from MIN_BYTES up; `make` gives the collective of so many bytes."""
    curve: Curve = []
    num_bytes = MIN_BYTES
    while num_bytes <= setting.max_bytes:
        time_s = _time(*make(num_bytes), group, setting)
        curve.append((float(num_bytes), time_s))
        setting.show(f"{name} {num_bytes} bytes: {time_s * 1e6:.1f} us")
        if time_s > _SLOW_S:
            break
        num_bytes *= _FACTOR
    return curve


def _time(run: Callable[[], None], renew: Callable[[], object], group: dist.ProcessGroup, setting: Setting) -> float:
    """Median seconds of one call, each that of the slowest rank. `renew` puts fresh data in place before a repeat, untimed."""
    for _ in range(_NUM_WARMUP):
        run()
    one_s = _slowest([_timed(run, 1, group, setting)], group, setting)[0]  # alike on all ranks, as the numbers below must be
    per_repeat = 1
    if setting.device.type == "cuda":  # several in a row, so that the launch from the host is not what is timed
        per_repeat = max(1, min(20, round(2e-3 / one_s)))
    num_repeats = max(_MIN_REPEATS, min(_MAX_REPEATS, int(_SIZE_BUDGET_S / (one_s * per_repeat))))
    times_s = []
    for _ in range(num_repeats):
        renew()
        times_s.append(_timed(run, per_repeat, group, setting))
    return statistics.median(_slowest(times_s, group, setting))


def _slowest(times_s: Sequence[float], group: dist.ProcessGroup, setting: Setting) -> list[float]:
    slowest = torch.tensor(times_s, dtype=torch.float64, device=setting.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    values: list[float] = slowest.tolist()
    return values


def _timed(run: Callable[[], None], count: int, group: dist.ProcessGroup, setting: Setting) -> float:
    dist.barrier(group=group)
    if setting.device.type != "cuda":
        start_s = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - start_s) / count
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(setting.device)
    start.record()  # type: ignore[no-untyped-call]
    for _ in range(count):
        run()
    end.record()  # type: ignore[no-untyped-call]
    end.synchronize()  # type: ignore[no-untyped-call]
    return float(start.elapsed_time(end)) / 1e3 / count


def _random(num_bytes: int, dtype: torch.dtype, setting: Setting) -> torch.Tensor:
    return torch.rand(max(1, num_bytes // dtype.itemsize), device=setting.device).to(dtype)


def _all_reduce(num_bytes: int, dtype: torch.dtype, group: dist.ProcessGroup, setting: Setting) -> Probe:
    source = _random(num_bytes, dtype, setting)
    tensor = source.clone()
    return lambda: _ignore(dist.all_reduce(tensor, group=group)), lambda: tensor.copy_(source)


def _all_gather(num_bytes: int, group: dist.ProcessGroup, setting: Setting) -> Probe:
    shard = _random(num_bytes // group.size(), torch.float32, setting)
    whole = torch.empty(shard.numel() * group.size(), device=setting.device)
    return lambda: _ignore(dist.all_gather_into_tensor(whole, shard, group=group)), lambda: None


def _reduce_scatter(num_bytes: int, group: dist.ProcessGroup, setting: Setting) -> Probe:
    shard = torch.empty(max(1, num_bytes // 4 // group.size()), device=setting.device)
    whole = _random(shard.numel() * 4 * group.size(), torch.float32, setting)
    return lambda: _ignore(dist.reduce_scatter_tensor(shard, whole, group=group)), lambda: None


def _broadcast(num_bytes: int, group: dist.ProcessGroup, setting: Setting) -> Probe:
    tensor = _random(num_bytes, torch.float32, setting)
    return lambda: _ignore(dist.broadcast(tensor, group=group, group_src=0)), lambda: None


def _exchange(num_bytes: int, group: dist.ProcessGroup, setting: Setting) -> Probe:
    """Every rank sends to the next one and receives from the one before: each direction of each link once."""
    rank, size = group.rank(), group.size()
    sent, received = _random(num_bytes, torch.float32, setting), _random(num_bytes, torch.float32, setting)

    def run() -> None:
        messages = [
            dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % size),  # first: gloo then uses both directions
            dist.P2POp(dist.isend, sent, group=group, group_peer=(rank + 1) % size),
        ]
        for work in dist.batch_isend_irecv(messages):
            work.wait()

    return run, lambda: None


def _capacity(group: dist.ProcessGroup, setting: Setting, num_bytes: int) -> float:
    """Bus bandwidth of several all-reduces at a time, each with a group of its own: the most that any number of them reaches."""
    ranks = dist.get_process_group_ranks(group)
    groups: list[dist.ProcessGroup] = []
    best_gb_s = 0.0
    for count in _GROUPS:
        while len(groups) < count:
            groups.append(dist.new_group(ranks, use_local_synchronization=True))
        tensors = [_random(num_bytes, torch.float32, setting) for _ in range(count)]

        def run(tensors: Sequence[torch.Tensor] = tensors, count: int = count) -> None:
            works = [dist.all_reduce(tensor, group=one, async_op=True) for tensor, one in zip(tensors, groups[:count], strict=True)]
            for work in works:
                work.wait()

        time_s = _time(run, lambda: None, group, setting)
        busbw_gb_s = 2 * (group.size() - 1) / group.size() * num_bytes * count / time_s / _GB
        setting.show(f"{count} all-reduces of {num_bytes} bytes at a time: {busbw_gb_s:.3f} GB/s")
        best_gb_s = max(best_gb_s, busbw_gb_s)
    for one in groups:
        dist.destroy_process_group(one)
    return best_gb_s


def _host_costs(dtypes: Sequence[torch.dtype], group: dist.ProcessGroup, setting: Setting) -> dict[str, HostCost]:
    """CPU time that all-reduces take from a rank that computes at the same time: what its computing slows down by."""
    costs = {}
    for dtype in dtypes:
        name = "all_reduce" if dtype is torch.float32 else f"all_reduce/{str(dtype).removeprefix('torch.')}"
        (small, large) = (_host_cost(num_bytes, dtype, group, setting) for num_bytes in _HOST_COST_SIZES)
        per_byte_s = max(0.0, (large - small) / (_HOST_COST_SIZES[1] - _HOST_COST_SIZES[0]))
        costs[name] = HostCost(per_call_s=max(0.0, small - per_byte_s * _HOST_COST_SIZES[0]), per_byte_s=per_byte_s)
        setting.show(f"{name} takes {costs[name].per_byte_s * 2**20 * 1e6:.0f} us of the CPU for each MiB")
    costs["point_to_point"] = HostCost(per_call_s=costs["all_reduce"].per_call_s / 2, per_byte_s=costs["all_reduce"].per_byte_s / 2)
    return costs


def _host_cost(num_bytes: int, dtype: torch.dtype, group: dist.ProcessGroup, setting: Setting) -> float:
    run, renew = _all_reduce(num_bytes, dtype, group, setting)
    tensor = _random(num_bytes, dtype, setting)
    operand = torch.rand(128, 128)

    def compute(until: Callable[[], bool]) -> tuple[int, float]:
        start_s, count = time.perf_counter(), 0
        while not until():
            torch.mm(operand, operand)
            count += 1
        return count, time.perf_counter() - start_s

    def after(seconds: float) -> Callable[[], bool]:
        end_s = time.perf_counter() + seconds
        return lambda: time.perf_counter() >= end_s

    one_s = _time(run, renew, group, setting)
    num_calls = max(3, math.ceil(_HOST_COST_S / one_s))
    dist.barrier(group=group)
    alone_count, alone_s = compute(after(_HOST_COST_S))
    dist.barrier(group=group)
    start_s, count = time.perf_counter(), 0
    for _ in range(num_calls):
        work = dist.all_reduce(tensor, group=group, async_op=True)
        count += compute(work.is_completed)[0]
    beside_s = time.perf_counter() - start_s
    lost_s = max(0.0, beside_s - count * alone_s / alone_count)
    mean = torch.tensor(lost_s / num_calls, dtype=torch.float64)
    dist.all_reduce(mean, group=group)
    return float(mean) / group.size()


def _ignore(work: object) -> None:
    """Synchronous calls give nothing back."""
