"""Rounds pooled into one measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpualloc.bench.rounds import pool_rounds
from gpualloc.records import Measurement, from_json, to_json
from gpualloc.store.rows import decode_measurement, encode_measurement
from tests.store.sample_measurements import image_case, llm_case, measured

FIRST = measured(image_case(), 0.020, exposed_comm_s=0.002, wall_time_s=10.0, step_time_ci_low_s=0.0195, step_time_ci_high_s=0.0205)
SECOND = measured(image_case(), 0.0204, exposed_comm_s=0.004, wall_time_s=12.0, step_time_ci_low_s=0.0199, step_time_ci_high_s=0.0209)


def test_the_repeats_of_both_rounds_count() -> None:
    pooled = pool_rounds(FIRST, SECOND)
    assert pooled.repeat_step_times_s == (*FIRST.repeat_step_times_s, *SECOND.repeat_step_times_s)
    assert pooled.step_time_s == pytest.approx(0.0202, rel=0.01)
    assert (pooled.step_time_low_s, pooled.step_time_high_s) == (min(FIRST.repeat_step_times_s), max(SECOND.repeat_step_times_s))
    assert pooled.compute_time_s == pytest.approx((0.018 + 0.0164) / 2)
    assert pooled.exposed_comm_s == pytest.approx(pooled.step_time_s - pooled.compute_time_s)
    assert pooled.samples_per_s == pytest.approx(128 / pooled.step_time_s)
    assert (pooled.num_rounds, pooled.wall_time_s, pooled.notes) == (2, 22.0, ())
    assert decode_measurement(encode_measurement(pooled)) == pooled


def test_a_third_round_weighs_as_much_as_each_of_the_first_two() -> None:
    pooled = pool_rounds(pool_rounds(FIRST, SECOND), replace(FIRST, compute_time_s=0.02))
    assert pooled.compute_time_s == pytest.approx((0.018 + 0.0164 + 0.02) / 3)
    assert len(pooled.repeat_step_times_s) == 15


def test_tokens_follow_the_pooled_step() -> None:
    pooled = pool_rounds(measured(llm_case(), 0.2), measured(llm_case(), 0.3))
    assert pooled.tokens_per_s == pytest.approx(2 * 8 * 1024 / pooled.step_time_s)


@pytest.mark.parametrize("order", [1, -1])
def test_a_disturbed_round_is_not_averaged_in(order: int) -> None:
    disturbed = replace(SECOND, disturbances=("all 5 repeats: made up",))
    pooled = pool_rounds(*[FIRST, disturbed][::order])
    assert pooled.repeat_step_times_s == FIRST.repeat_step_times_s
    assert pooled.disturbances == ()
    assert pooled.notes == ("a round was left out: all 5 repeats: made up",)
    assert pooled.num_rounds == 2
    both = pool_rounds(disturbed, disturbed)
    assert both.disturbances == ("all 5 repeats: made up",)


def test_drift_beyond_the_noise_is_noted() -> None:
    slower = replace(measured(image_case(), 0.025), step_time_ci_low_s=0.0245, step_time_ci_high_s=0.0255)
    assert pool_rounds(FIRST, slower).notes == ("round 2 took +25.0% a step: the machine drifts",)


def test_a_later_round_that_fails_leaves_the_figures_and_a_note() -> None:
    failed = Measurement(case=image_case(), status="oom", reason="rank 0: made up", wall_time_s=1.0)
    pooled = pool_rounds(FIRST, failed)
    assert (pooled.status, pooled.step_time_s, pooled.notes) == ("ok", 0.020, ("round 2: oom: rank 0: made up",))


def test_what_an_older_gpualloc_wrote_is_read() -> None:
    older = to_json(FIRST)
    for name in ("num_rounds", "wall_time_s", "asked_batch_size", "disturbances", "notes", "step_time_ci_low_s", "step_time_ci_high_s"):
        del older[name]
    assert from_json(older) == replace(FIRST, wall_time_s=None, step_time_ci_low_s=None, step_time_ci_high_s=None)
