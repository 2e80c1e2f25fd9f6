"""Forecast options from a model that is known, in place of the fitted one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from gpualloc.advice import advise, make_job
from gpualloc.advice.forecasts import StepForecast, fit_steps, forecaster_of
from gpualloc.findings import Interval
from gpualloc.records import BenchCase
from tests.advice.made_runs import FP16_S, TWO_EUROS, evidence_of, row, scaling_run, single
from tests.store.sample_measurements import image_case


def communication(cases: Sequence[BenchCase]) -> list[StepForecast]:
    """Every doubling of the GPUs adds 20 ms to the 0.4 s of 200 px, to a tenth each way; nothing is known beyond 64."""
    found = []
    for case in cases:
        if case.world_size > 64:
            found.append(StepForecast(step_time_s=None, kind="refused", reason="not enough evidence: measure 64 next", basis=()))
            continue
        step_s = FP16_S * ((case.image_size_px or 0) / 200) ** 2 + 0.02 * (case.world_size.bit_length() - 1)
        step = Interval(value=step_s, low=step_s * 0.9, high=step_s * 1.1)
        found.append(StepForecast(step_time_s=step, kind="extrapolates", reason=None, basis=("a rule",)))
    return found


def test_only_what_was_not_run_is_forecast() -> None:
    advice = advise(evidence_of(scaling_run(), precision="fp16"), make_job(), counts=(4, 16, 128), rent=TWO_EUROS, forecaster=communication)
    by_count = {option.num_gpus: option for option in advice.options}
    assert {count: option.source for count, option in by_count.items()} == {
        **dict.fromkeys((1, 2, 4, 8), "measured"),
        16: "forecast",
        128: "forecast",
    }
    sixteen = by_count[16]
    assert sixteen.efficiency is not None
    assert sixteen.efficiency.value == pytest.approx(0.4 / 0.48, rel=1e-2)
    assert sixteen.efficiency.low == pytest.approx(0.4 / 0.48 / 1.1, rel=1e-2)
    assert sixteen.num_nodes == 2
    assert (sixteen.memory.source, sixteen.memory.fits) == ("measured", True)  # every GPU has the whole model, whatever their number
    refused = by_count[128]
    assert (refused.forecast_kind, refused.samples_per_s, refused.cost) == ("refused", None, None)
    assert refused.why == "not enough evidence: measure 64 next"
    assert sixteen.why == "too close to call"
    assert advice.chosen is by_count[4]  # what is certain comes before what is likely
    assert not advice.is_certain
    assert "16 GPUs on 2 nodes could keep 80%, too: 83% [76%, 93%]" in advice.answer[-1]
    likely = advise(evidence_of(scaling_run()[:2], precision="fp16"), make_job(), counts=(16,), forecaster=communication)
    assert likely.chosen is not None
    assert (likely.chosen.num_gpus, likely.chosen.source) == (16, "forecast")
    assert "the choice is forecast, not measured" in likely.answer[-1]


def test_a_forecast_that_loading_bounds_says_so() -> None:
    """A step takes 0.4 s on one GPU; the machine's loaders deliver 700 samples/s, of which eight GPUs' batches of 64 need 512 a step."""
    rows = [dataclasses.replace(each, input_samples_per_s=700.0) for each in scaling_run() if each.case.world_size <= 4]
    evidence = evidence_of(rows, precision="fp16")
    forecaster = forecaster_of(fit_steps(evidence, [], gpus_per_node=8), evidence.device_name, gpus_per_node=8)
    (eight,) = [each for each in advise(evidence, make_job(), counts=(8,), forecaster=forecaster).options if each.num_gpus == 8]
    assert eight.samples_per_s is not None
    assert eight.samples_per_s.value == pytest.approx(700, rel=0.05)
    assert eight.note == "bound by input: the loaders of a node do not keep up with 8 GPUs"


def test_a_threshold_of_a_count_that_was_not_run() -> None:
    """On 16 GPUs 80 ms are added: 80 % where computing takes 320 ms, at 178.9 px."""
    rows = [row(single(image_size_px=size), FP16_S * (size / 200) ** 2) for size in (100, 200, 400)]
    advice = advise(evidence_of(rows), make_job(), counts=(16,), forecaster=communication)
    (crossing,) = [each for each in advice.crossings if each.case.world_size == 16 and each.axis == "image_size_px"]
    assert crossing.value == pytest.approx(200 * (0.32 / 0.4) ** 0.5, abs=1)
    assert crossing.low is not None
    assert crossing.high is not None
    assert crossing.low < crossing.value < crossing.high
    assert crossing.sources == ("forecast",)


def test_the_fitted_model_knows_rehearsed_clusters_apart_from_real_ones() -> None:
    cluster = {"gpus_per_node": 8, "link": "nvlink4"}
    rows = [*scaling_run(), row(image_case(world_size=8, **cluster), FP16_S / 0.9)]
    evidence = evidence_of(rows)
    forecaster = forecaster_of(fit_steps(evidence, [], gpus_per_node=8), evidence.device_name, gpus_per_node=8)
    real, rehearsed = forecaster([image_case(world_size=3), image_case(world_size=8, **cluster)])
    assert real.kind == "interpolates"
    assert real.step_time_s is not None
    assert FP16_S / 0.95 < real.step_time_s.value < FP16_S / 0.875
    assert rehearsed.step_time_s is not None
    assert rehearsed.step_time_s.value == pytest.approx(FP16_S / 0.9, rel=0.1)
