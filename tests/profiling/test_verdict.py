"""The verdict as a function of profiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpualloc.profiling.records import LoaderSetting, RankProfile, Utilisation, rank_from_json, rank_to_json
from gpualloc.profiling.verdict import KINDS, THRESHOLDS, imbalance_share, judge
from tests.profiling.made_profiles import made_cpu_rank, made_rank, made_times

BUSY = made_times(kernels_s=0.9, launch_gap_s=0.1, matmul_s=0.8, num_launches=100)


def test_input() -> None:
    rank = made_rank(made_times(input_wait_s=0.41, kernels_s=0.59), num_cpus=8)
    verdict = judge([rank])
    assert verdict.sentence == "input-bound: 41% of the step waits for the loader; try 1 worker before more GPUs"
    assert verdict.share == pytest.approx(0.41)
    slow = replace(rank, times=made_times(input_wait_s=0.8, kernels_s=0.2), loader=LoaderSetting(num_workers=1, pin_memory=True))
    assert judge([slow]).next_step == "try 5 workers instead of 1 before more GPUs"
    few_cores = judge([replace(slow, num_cpus=2)])
    assert few_cores.next_step == (
        "try 2 workers instead of 1; hiding it all takes about 5 workers and here are 2 cores, so make a batch cheaper to load"
    )
    assert "make a batch cheaper" in judge([replace(slow, num_cpus=1)]).next_step
    assert "prepare batches ahead" in judge([replace(slow, loader=None)]).next_step


def test_copies_from_the_host_are_input_too() -> None:
    rank = made_rank(
        made_times(input_wait_s=0.1, host_to_device_s=0.3, kernels_s=0.6), loader=LoaderSetting(num_workers=4, pin_memory=False)
    )
    verdict = judge([rank])
    assert verdict.kind == "input-bound"
    assert verdict.evidence == ("40% of the step waits for batches to be copied to the GPU",)
    assert "pin_memory=True" in verdict.next_step
    assert "half" in judge([replace(rank, loader=LoaderSetting(num_workers=4, pin_memory=True))]).next_step


def test_launch() -> None:
    times = made_times(kernels_s=0.3, launch_gap_s=0.7, num_launches=30_000)
    verdict = judge([made_rank(times)])
    assert (verdict.kind, verdict.share) == ("launch-bound", 0.7)
    assert verdict.evidence[0] == "the GPU idles for 70% of the step between 30000 kernels of 10 us"
    assert "CUDA graphs" in verdict.next_step
    assert "5 times a step (.item()" in judge([made_rank(replace(times, num_synchronisations=5.0))]).next_step
    on_cpu = judge([made_cpu_rank(times)])
    assert on_cpu.kind == "launch-bound"
    assert on_cpu.evidence[0] == "70% of the step is Python and dispatch around 30000 operators"


def test_compute_and_memory() -> None:
    assert judge([made_rank(BUSY)]).kind == "compute-bound"
    assert "at 30% of its peak FLOP/s" in judge([made_rank(BUSY)]).sentence
    busy_memory = Utilisation(gpu=1.0, sm=0.9, tensor=0.0, dram=0.8, reason=None)
    verdict = judge([made_rank(BUSY, utilisation=busy_memory, mfu=0.01)])
    assert verdict.kind == "memory-bound"
    assert verdict.evidence[0] == "the GPU's memory runs at 80% of its peak bandwidth"
    assert judge([made_rank(BUSY, utilisation=busy_memory, mfu=0.6)]).kind == "compute-bound"  # arithmetic is the bound


def test_without_counters_the_roofline_tells_and_without_that_the_names() -> None:
    rank = made_cpu_rank(BUSY)
    assert judge([rank]).kind == "compute-bound"
    assert rank.costs is not None
    mostly_bytes = replace(rank, costs=replace(rank.costs, memory_share=0.7))
    assert judge([mostly_bytes]).kind == "memory-bound"
    assert judge([mostly_bytes]).evidence[0] == "70% of the computing, by its roofline, moves bytes rather than calculates"
    assert not any("roofline allows" in line for line in judge([mostly_bytes]).evidence)
    far = judge([replace(rank, costs=replace(rank.costs, roofline_s=0.1))])
    assert far.evidence[-1] == "computing takes 9.0 times what the roofline allows: its kernels are slow, or others use the device"
    uncounted = replace(rank, costs=None, speed=None)
    assert judge([uncounted]).kind == "compute-bound"
    elementwise = judge([replace(uncounted, times=replace(BUSY, matmul_s=0.1))])
    assert (elementwise.kind, elementwise.evidence[0][:3]) == ("memory-bound", "89%")


def ranks_of(*times: Any, **changes: Any) -> list[RankProfile]:
    return [made_rank(each, rank=rank, world_size=len(times), **changes) for rank, each in enumerate(times)]


def test_communication() -> None:
    ranks = ranks_of(*(made_times(kernels_s=0.5, exposed_comm_s=0.5, hidden_comm_s=0.125) for _ in range(2)))
    verdict = judge(ranks)
    assert (verdict.kind, verdict.share) == ("communication-bound", 0.5)
    assert verdict.evidence[1] == "20% of the communication is hidden"
    assert "register_comm_hook" in verdict.next_step


def test_waiting_for_a_slow_rank_is_imbalance_not_communication() -> None:
    ranks = ranks_of(made_times(kernels_s=0.3, exposed_comm_s=0.7), made_times(kernels_s=0.9, exposed_comm_s=0.1))
    assert imbalance_share(ranks) == pytest.approx(0.3)
    verdict = judge(ranks)
    assert verdict.kind == "imbalance"
    assert verdict.evidence == (
        "rank 1 works 3.0 times as long as rank 0, and equal work would save 30% of the step",
        "most of the difference is computing: 600.0 ms a step",
    )
    assert verdict.shares["communication-bound"] == pytest.approx(0.1)


def test_one_ranks_slow_loader_is_imbalance_and_all_ranks_is_input() -> None:
    fast, slow = made_times(kernels_s=0.5, exposed_comm_s=0.5), made_times(kernels_s=0.5, input_wait_s=0.45, exposed_comm_s=0.05)
    verdict = judge(ranks_of(fast, slow))
    assert verdict.kind == "imbalance"
    assert "look at rank 1's data" in verdict.next_step
    assert judge(ranks_of(slow, slow)).kind == "input-bound"


def test_the_largest_share_that_passes_its_threshold_wins() -> None:
    times = made_times(kernels_s=0.35, input_wait_s=0.2, launch_gap_s=0.45)
    assert judge([made_rank(times)]).kind == "launch-bound"
    below = made_times(kernels_s=1.0, input_wait_s=0.14, exposed_comm_s=0.1, launch_gap_s=0.29)
    assert judge([made_rank(below)]).kind == "compute-bound"
    assert set(judge([made_rank(below)]).shares) == set(THRESHOLDS) < set(KINDS)


def test_a_rank_goes_through_json_unchanged() -> None:
    for rank in (made_rank(BUSY), made_cpu_rank(BUSY, loader=None, costs=None, speed=None, notes=("a note",))):
        assert rank_from_json(rank_to_json(rank)) == rank
