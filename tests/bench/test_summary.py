"""The ranks' figures combined, with numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from gpualloc.bench.rank_files import RankReport
from gpualloc.bench.summary import summarise
from gpualloc.errors import CaseFailedError
from tests.bench.cases import tiny_case
from tests.store.sample_measurements import GPU_ENVIRONMENT


def report(**changes: Any) -> RankReport:
    figures: dict[str, Any] = {
        "step_times_s": [[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]],
        "compute_times_s": [[0.05], [0.07]],
        "loss_start": 2.0,
        "loss_end": 1.0,
        "peak_memory_bytes": 100,
        "wire_bytes_per_step": 8,
        "nonfinite_steps": None,
        "parameter_checksum": "1 2 3",
    }
    return RankReport(**{**figures, **changes})


def test_a_step_is_as_long_as_its_slowest_rank() -> None:
    slower = report(
        step_times_s=[[0.3, 0.1, 0.3], [0.4, 0.4, 0.4]],
        compute_times_s=[[0.06], [0.04]],
        loss_start=4.0,
        loss_end=3.0,
        peak_memory_bytes=300,
    )
    measured = summarise(tiny_case(), [report(), slower], backend="gloo", environment=GPU_ENVIRONMENT)
    assert measured.repeat_step_times_s == pytest.approx((0.3, 0.4))
    assert (measured.step_time_s, measured.step_time_low_s, measured.step_time_high_s) == pytest.approx((0.35, 0.3, 0.4))
    assert measured.compute_time_s == pytest.approx(0.065)
    assert measured.exposed_comm_s == pytest.approx(0.285)
    assert measured.samples_per_s == pytest.approx(16 / 0.35)
    assert (measured.loss_start, measured.loss_end, measured.peak_memory_bytes) == (3.0, 2.0, 300)


def test_readers_of_all_ranks_deliver_together_and_of_a_rehearsed_node_only_one_is_known() -> None:
    ranks = [report(input_samples_per_s=100.0), report(input_samples_per_s=80.0)]
    assert summarise(tiny_case(), ranks, backend="gloo", environment=None).input_samples_per_s == 180.0
    assert summarise(tiny_case(), [ranks[0], report()], backend="gloo", environment=None).input_samples_per_s is None
    rehearsed = tiny_case(gpus_per_node=2, link="nvlink4")
    assert summarise(rehearsed, ranks[:1], backend=None, environment=None).input_samples_per_s is None


def test_a_repeat_that_any_rank_saw_disturbed_is_left_out() -> None:
    seen = report(disturbances=[["power brake"], []], notes=["low limit"])
    measured = summarise(tiny_case(), [report(disturbances=[[], []]), seen], backend="gloo", environment=None)
    assert measured.repeat_step_times_s == (0.2,)
    assert measured.compute_time_s == pytest.approx(0.07)
    assert measured.disturbances == ()
    assert measured.notes == ("low limit", "1 of 2 repeats left out: power brake")


def test_where_all_repeats_were_disturbed_the_figures_say_so() -> None:
    seen = report(disturbances=[["power brake"], ["a neighbour"]])
    measured = summarise(tiny_case(), [seen, report()], backend="gloo", environment=None)
    assert len(measured.repeat_step_times_s) == 2
    assert measured.disturbances == ("all 2 repeats: power brake",)


def test_the_interval_goes_with_the_repeats() -> None:
    measured = summarise(
        tiny_case(), [report(step_times_s=[[0.1], [0.2], [0.3]], compute_times_s=[[0.1]] * 3)], backend=None, environment=None
    )
    half = 4.303 * 1.2533 * 0.1 / 3**0.5
    assert (measured.step_time_ci_low_s, measured.step_time_ci_high_s) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-3)


def test_exposed_communication_is_not_below_zero() -> None:
    measured = summarise(tiny_case(), [report(compute_times_s=[[1.0], [1.0]])] * 2, backend="gloo", environment=None)
    assert measured.exposed_comm_s == 0


def test_a_single_process_exposes_nothing() -> None:
    case = tiny_case(strategy="single", world_size=1)
    measured = summarise(case, [report(compute_times_s=[[], []])], backend=None, environment=None)
    assert measured.compute_time_s == measured.step_time_s
    assert measured.exposed_comm_s == 0


def test_accumulated_batches_are_samples_of_their_step() -> None:
    once, thrice = (summarise(tiny_case(grad_accum_steps=k), [report()] * 2, backend="gloo", environment=None) for k in (1, 3))
    assert once.samples_per_s is not None
    assert thrice.samples_per_s == pytest.approx(3 * once.samples_per_s)


def test_tokens_are_counted_for_language_models() -> None:
    case = tiny_case(workload="llm", model="gpt_small", image_size_px=None, sequence_length=10)
    measured = summarise(case, [report()] * 2, backend="gloo", environment=None)
    assert measured.tokens_per_s == pytest.approx(2 * 8 * 10 / 0.2)


def test_the_clocks_of_rank_0_are_recorded() -> None:
    measured = summarise(tiny_case(), [report(sm_clock_mhz=1980, mem_clock_mhz=2619)] * 2, backend="nccl", environment=GPU_ENVIRONMENT)
    assert measured.environment is not None
    assert (measured.environment.sm_clock_mhz, measured.environment.mem_clock_mhz) == (1980, 2619)


def test_replicas_that_differ_are_a_failure() -> None:
    with pytest.raises(CaseFailedError, match="rank 1 are not those of rank 0") as caught:
        summarise(tiny_case(), [report(), report(parameter_checksum="1 2 4")], backend="gloo", environment=None)
    assert caught.value.rank == 1


def test_shards_may_differ_but_not_their_replicas() -> None:
    case = tiny_case(strategy="hsdp", world_size=4)
    held = [report(shard=shard, parameter_checksum=str(shard), compute_times_s=[[], []]) for shard in (0, 1, 0, 1)]
    measured = summarise(case, held, backend="gloo", environment=None)
    assert (measured.compute_time_s, measured.exposed_comm_s) == (None, None)
    with pytest.raises(CaseFailedError, match="rank 3 are not those of rank 1"):
        summarise(case, [*held[:3], report(shard=1, parameter_checksum="0")], backend="gloo", environment=None)


def test_the_loss_is_that_of_the_ranks_that_know_it() -> None:
    first = report(loss_start=None, loss_end=None, wire_bytes_per_step=None, compute_times_s=[[], []])
    last = report(shard=1, wire_bytes_per_step=None, compute_times_s=[[], []])
    measured = summarise(tiny_case(strategy="pipeline"), [first, last], backend="gloo", environment=None)
    assert (measured.loss_start, measured.loss_end, measured.wire_bytes_per_step) == (2.0, 1.0, None)
    assert measured.samples_per_s == pytest.approx(8 / 0.2)  # a batch goes through both ranks
