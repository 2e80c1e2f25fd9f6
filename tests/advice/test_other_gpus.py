"""Figures carried over to kinds of GPU that were not measured, from rows whose ratio of speeds is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpualloc.advice import Evidence
from gpualloc.advice.forecasts import fit_steps
from gpualloc.advice.other_gpus import GpuKind, carry_over
from gpualloc.advice.records import OtherGpu, RentOf
from gpualloc.errors import UsageError
from gpualloc.findings import Interval
from gpualloc.records import Measurement
from tests.advice.made_runs import EIGHT_GPUS, FP16_S, advice_on, evidence_of, scaling_run, single
from tests.store.sample_measurements import measured

H200 = "NVIDIA H200"
THREE_DOLLARS = RentOf(amount_per_gpu_hour=3.0, currency="USD", described="made", is_example=False)


def on_h200(case: Any, step_time_s: float) -> Measurement:
    return measured(case, step_time_s, spread=0.004, environment=replace(EIGHT_GPUS, device_name=H200))


def carried(kind: GpuKind, *, more: list[Measurement] | None = None, **job: Any) -> OtherGpu:
    rows = scaling_run()
    evidence: Evidence = evidence_of(rows)
    (found,) = carry_over(
        advice_on(rows, job=job),
        [kind],
        evidence=evidence,
        model=fit_steps(evidence, [], gpus_per_node=8),
        history=[*(more or []), *reversed(rows)],
        gpus_per_node=8,
        rent_of=lambda name: (THREE_DOLLARS, None),
    )
    return found


def log_width(interval: Interval | None) -> float:
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.high / interval.low


def test_given_ratios_of_computing_and_links_carry_every_number_of_gpus_over() -> None:
    other = carried(GpuKind(device_name=H200, compute_ratio=2.0, link_ratio=2.0), dataset_size=1_152_000, epochs=10)
    assert (other.ratio_source, other.compute_ratio) == ("given", 2.0)
    by_count = {option.num_gpus: option for option in other.options}
    assert list(by_count) == [1, 2, 4, 8]
    for count, option in by_count.items():
        assert option.kind == "carried over"
        assert option.speedup is not None
        assert option.speedup.value == pytest.approx(2.0, rel=0.1)  # all of a step is twice as fast
        assert option.samples_per_s is not None
        assert option.cost is not None
        hours = 11_520_000 / option.samples_per_s.value / 3600
        assert option.cost.value == pytest.approx(hours * count * 3.0)
        assert option.time_s is not None
        assert option.time_s.value == pytest.approx(hours * 3600)
        assert log_width(option.samples_per_s) > 2  # jobs differ in how far a ratio shows
    assert by_count[1].step_time_s is not None
    assert by_count[1].step_time_s.value == pytest.approx(FP16_S / 2, rel=0.05)


def test_faster_links_alone_help_several_gpus_alone() -> None:
    one, *_, eight = carried(GpuKind(device_name=H200, compute_ratio=1.0, link_ratio=8.0)).options
    assert one.speedup is not None
    assert eight.speedup is not None
    assert one.speedup.value == pytest.approx(1.0, rel=0.05)
    assert eight.speedup.value > 1.01  # of these rows without a wait for gradients, the model puts most of the loss down to the node
    assert one.time_s is None  # the job's size is not known
    assert one.cost_per_million_samples is not None


def test_a_job_measured_on_both_comes_before_published_bandwidths_and_is_surer() -> None:
    published = carried(GpuKind(device_name=H200))
    assert published.ratio_source == "published"
    assert published.described == "published memory bandwidths, 4,800 and 3,350 GB/s"
    assert 1 < published.compute_ratio < 4800 / 3350
    others = [on_h200(single(precision="fp32", model="resnet50"), 1.0)]
    own = [on_h200(single(precision="fp16"), FP16_S / 1.3), *others]
    found = carried(GpuKind(device_name=H200), more=own)
    assert (found.ratio_source, found.described) == ("measured", "one GPU of each, measured with mobilenet_v2")
    assert found.compute_ratio == pytest.approx(1.3, rel=0.01)
    assert log_width(found.options[0].samples_per_s) < log_width(published.options[0].samples_per_s)
    assert carried(GpuKind(device_name=H200), more=others).ratio_source == "published"  # that job was measured on one of them alone


def test_what_cannot_be_carried_over_is_refused() -> None:
    with pytest.raises(UsageError, match="'NVIDIA H100 80GB HBM3' is what was measured"):
        carried(GpuKind(device_name="NVIDIA H100 80GB HBM3"))
    with pytest.raises(UsageError, match=r"no memory bandwidth is published here for 'NVIDIA A100'.*'NVIDIA A100:1.9'"):
        carried(GpuKind(device_name="NVIDIA A100"))
