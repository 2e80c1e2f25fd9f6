"""Estimates: counted operations, and what earlier measurements say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpualloc.bench.estimate import Estimator, count_step_flops
from tests.bench.cases import tiny_case
from tests.store.sample_measurements import CPU_ENVIRONMENT, GPU_ENVIRONMENT, measured

CASE = tiny_case(image_size_px=100, num_warmup_steps=2, num_steps=2, num_repeats=3)


def seen(**changes: object) -> Estimator:
    row = measured(replace(CASE, **changes), 0.5, wall_time_s=12.0)  # type: ignore[arg-type]
    return Estimator(CPU_ENVIRONMENT, [row])


def test_operations_are_counted() -> None:
    flops = count_step_flops(tiny_case(image_size_px=224, per_device_batch_size=2, grad_accum_steps=3))
    assert flops == pytest.approx(6 * 3 * 0.6e9, rel=0.02)  # 300 M multiply-adds, as published, three times for a step
    llm = tiny_case(workload="llm", model="gpt2", image_size_px=None, sequence_length=1, per_device_batch_size=1)
    assert count_step_flops(llm) == pytest.approx(6 * 124e6, rel=0.02)


def test_what_cannot_be_counted_is_guessed() -> None:
    unknown = tiny_case(model="unheard_of")
    assert count_step_flops(unknown) is None
    assert Estimator(CPU_ENVIRONMENT, []).estimate(unknown).basis == "rough guess, without the model's operations"


def test_the_same_case_takes_as_long_as_before() -> None:
    assert seen().estimate(CASE) == pytest.approx(seen().estimate(CASE))
    found = seen().estimate(CASE)
    assert (found.seconds, found.basis) == (12.0, "measured before")


def test_more_steps_of_the_same_case_take_longer() -> None:
    found = seen().estimate(replace(CASE, num_repeats=5))
    assert found.basis == "step measured before"
    assert found.seconds == pytest.approx(12.0 + 2 * 2 * 1.5 * 0.5)


def test_a_larger_image_is_scaled_by_its_pixels() -> None:
    found = seen().estimate(replace(CASE, image_size_px=200))
    assert found.basis == "scaled from 1 earlier measurements of mobilenet_v2"
    num_steps = 2 + 3 * 2 * 1.5
    assert found.seconds == pytest.approx(12.0 - num_steps * 0.5 + num_steps * 2.0)


def test_another_model_is_scaled_by_its_operations() -> None:
    llm = replace(CASE, workload="llm", model="gpt_small", image_size_px=None, sequence_length=128)
    found = seen().estimate(llm)
    assert found.basis == "rough guess from 1 measurements of other models"
    assert found.seconds > 0


def test_other_devices_say_nothing() -> None:
    elsewhere = measured(CASE, 0.5, environment=GPU_ENVIRONMENT)
    assert Estimator(CPU_ENVIRONMENT, [elsewhere]).estimate(CASE).basis == "rough guess"


def test_a_model_that_cannot_be_counted_says_nothing_of_others() -> None:
    found = seen(model="unheard_of").estimate(CASE)
    assert found.basis == "rough guess"
    assert found.seconds < 60
