"""Which measurement tells most, on made clusters whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpualloc.scaling import ScalingModel, StepQuery, StepRow
from gpualloc.scaling.suggest import suggest_crossing
from tests.scaling.test_forecast import rows_of, truth

BATCHES = (8, 12, 16, 24, 32, 48, 64, 96, 128)


def query(gpus: int, batch: int) -> StepQuery:
    return StepQuery(cluster="made", model="job1", num_nodes=1, num_gpus=gpus, placement=str(gpus), per_device_batch_size=batch)


def row(gpus: int, batch: int) -> StepRow:
    step_time_s, sync_time_s = truth(1, 1, gpus, batch)
    return StepRow(**vars(query(gpus, batch)), step_time_s=step_time_s, sync_time_s=sync_time_s)


@pytest.mark.parametrize("bar", [0.75, 0.8, 0.85, 0.9])
def test_both_neighbours_of_the_bar_are_found_with_few_measurements(bar: float) -> None:
    efficiencies = [truth(1, 1, 1, batch)[0] / truth(1, 1, 4, batch)[0] for batch in BATCHES]
    low, high, rows = 0, len(BATCHES) - 1, [row(gpus, batch) for gpus in (1, 4) for batch in (BATCHES[0], BATCHES[-1])]
    num_measured = 0
    while high - low > 1:
        series = [(query(1, batch), query(4, batch)) for batch in BATCHES[low : high + 1]]
        index = suggest_crossing(ScalingModel.fit(rows), series, bar)
        assert index is not None
        index += low
        assert low < index < high
        rows += [row(1, BATCHES[index]), row(4, BATCHES[index])]
        low, high = (low, index) if efficiencies[index] >= bar else (index, high)
        num_measured += 1
    assert efficiencies[low] < bar <= efficiencies[high]
    assert num_measured <= 4  # of the seven between the ends


def test_nothing_between_and_too_little_evidence_have_no_suggestion() -> None:
    series = [(query(1, batch), query(4, batch)) for batch in (8, 16, 32)]
    assert suggest_crossing(ScalingModel.fit([row(1, 8), row(4, 8)]), series, 0.8) is None
    full = ScalingModel.fit([row(gpus, batch) for gpus in (1, 4) for batch in (8, 32)])
    assert suggest_crossing(full, series[:2], 0.8) is None
    assert suggest_crossing(full, series, 0.8) == 1


def test_one_gpu_is_forecast_as_it_was_measured_though_several_differ() -> None:
    """The batch of 16 is slow on one GPU alone: a forecast of one GPU follows that, one of several does not."""
    rows = [each for job in range(3) for each in rows_of(job)]
    slow = [
        replace(each, step_time_s=each.step_time_s * 1.25)
        if (each.model, each.num_gpus, each.per_device_batch_size) == ("job1", 1, 16)
        else each
        for each in rows
    ]
    one, four = ScalingModel.fit(slow).predict([query(1, 16), query(4, 16)])
    assert one.step_time_s == pytest.approx(1.25 * truth(1, 1, 1, 16)[0], rel=0.06)
    assert four.step_time_s == pytest.approx(truth(1, 1, 4, 16)[0], rel=0.06)
