"""Loading on a made cluster whose truth is known: the slower of loading and everything else sets the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpualloc.errors import UsageError
from gpualloc.scaling import Forecast, ScalingModel, StepQuery, StepRow
from gpualloc.scaling.csv_rows import read_rows
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.transfer import carried_rows
from tests.scaling.test_forecast import rows_of, truth

BATCHES = (8, 16, 32, 64)
SHARED_BY_FOUR = 1100.0  # samples/s: at batch 64 loading takes 58 ms for one GPU, 116 for two, 233 for four, and computing 148
MODERATE = 350.0  # the same on one GPU: batches up to 16 are bound by computing, from 64 on by loading


def loaded(row: StepRow, samples_per_s: float) -> StepRow:
    """The row as its step would be with loaders that deliver so much."""
    loading_s = row.per_device_batch_size * row.fullest_node() / samples_per_s
    return replace(row, step_time_s=max(row.step_time_s, loading_s), sync_time_s=None, input_samples_per_s=samples_per_s)


def others() -> list[StepRow]:
    return [row for job in (1, 2) for row in rows_of(job)]


def mine(samples_per_s: float = SHARED_BY_FOUR) -> list[StepRow]:
    return [loaded(row, samples_per_s) for row in rows_of(0)]


def without_rate(rows: Sequence[StepRow]) -> list[StepRow]:
    return [replace(row, input_samples_per_s=None) for row in rows]


def on_four(forecast_from: list[StepRow], asked: list[StepRow]) -> list[Forecast]:
    return ScalingModel.fit([*others(), *forecast_from]).predict(asked)


def test_loaders_that_keep_up_with_two_gpus_and_not_with_four_are_forecast_from_one() -> None:
    alone = [row for row in mine() if row.num_gpus == 1]
    asked = [row for row in mine() if row.num_nodes == 1 and row.num_gpus in (2, 4)]
    assert {row.step_time_s > truth(0, 1, row.num_gpus, row.per_device_batch_size)[0] for row in asked if row.num_gpus == 2} == {False}
    with_rate, without = on_four(alone, asked), on_four(without_rate(alone), without_rate(asked))

    def errors(forecasts: list[Forecast]) -> np.ndarray:
        return np.array([abs((f.step_time_s or 0) / row.step_time_s - 1) for f, row in zip(forecasts, asked, strict=True)])

    assert all((f.low_s or 9) < row.step_time_s < (f.high_s or 0) for f, row in zip(with_rate, asked, strict=True))
    largest = [i for i, row in enumerate(asked) if (row.num_gpus, row.per_device_batch_size) == (4, 64)]
    assert errors(with_rate).max() < 0.1
    assert errors(with_rate)[largest] < 0.05 < 0.25 < errors(without)[largest]


def test_queries_without_a_rate_take_that_of_the_jobs_rows() -> None:
    model = ScalingModel.fit([*others(), *(row for row in mine() if row.num_gpus == 1)])
    (row,) = [row for row in mine() if (row.num_nodes, row.num_gpus, row.per_device_batch_size) == (1, 4, 64)]
    told, untold, faster = model.predict([row, replace(row, input_samples_per_s=None), replace(row, input_samples_per_s=1e5)])
    assert untold.step_time_s == told.step_time_s
    assert (faster.step_time_s or 9) < 0.8 * (told.step_time_s or 0)


def test_rows_bound_by_loading_say_little_of_computing() -> None:
    """With faster loaders a step takes what computing takes, though all rows at its batch and beyond were bound by loading."""
    times_s = {batch: truth(0, 1, 1, batch)[0] for batch in (8, 12, 16, 64, 128)}
    plain = [replace(rows_of(0)[0], per_device_batch_size=batch, step_time_s=time_s, sync_time_s=None) for batch, time_s in times_s.items()]
    bound = [loaded(row, MODERATE) for row in plain]
    assert [row.step_time_s > times_s[row.per_device_batch_size] for row in bound] == [False, False, False, True, True]
    asked = [replace(row, input_samples_per_s=1e5) for row in plain[3:]]
    forecasts = ScalingModel.fit([*others(), *bound]).predict(asked)
    assert [f.step_time_s for f in forecasts] == pytest.approx([row.step_time_s for row in asked], rel=0.06)
    (as_measured,) = ScalingModel.fit([*others(), *bound]).predict(bound[3:4])
    assert as_measured.step_time_s == pytest.approx(bound[3].step_time_s, rel=0.06)


def test_a_rate_that_training_does_not_reach_is_corrected_by_rows_that_loading_bound() -> None:
    """The loaders were measured alone and deliver a fifth less beside training."""
    rows = [replace(row, input_samples_per_s=1.25 * SHARED_BY_FOUR) for row in mine()]
    known = [row for row in rows if row.num_nodes == 1]
    asked = [row for row in rows if row.placement == "44" and row.per_device_batch_size == 64]
    model = ScalingModel.fit([*others(), *known])
    fit = model.clusters["made"].fit
    assert fit.coefficients[fit.names.index("job0 input")] == pytest.approx(np.log(1.25), abs=0.07)
    (forecast,) = model.predict(asked)
    assert forecast.step_time_s == pytest.approx(asked[0].step_time_s, rel=0.08)


class FifthLonger:
    """In place of what is left over: every step without loading takes e^0.2 times as long as by the equation."""

    keys = ("1/1",)

    def __call__(self, queries: Sequence[StepQuery], priors: Priors) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(queries), 0.2), np.zeros(len(queries))


def test_what_measurements_correct_of_computing_leaves_loading_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScalingModel.fit([*others(), *(row for row in rows_of(0) if row.num_gpus == 1)])
    asked = [replace(rows_of(0)[3], input_samples_per_s=rate) for rate in (1e5, 200.0)]
    plain = model.predict(asked)
    monkeypatch.setitem(model.clusters["made"].residuals, "job0", FifthLonger())  # type: ignore[misc]
    keeping_up, bound = model.predict(asked)
    assert keeping_up.step_time_s == pytest.approx((plain[0].step_time_s or 0) * np.exp(0.2), rel=0.005)
    assert bound.step_time_s == pytest.approx(64 / 200, rel=0.005)


def test_a_row_that_loading_bound_leaves_nothing_over_to_learn_from() -> None:
    alone = [row for row in mine(300.0) if row.num_gpus == 1]  # batch 8 is bound by computing and 64 by loading
    noise = ScalingModel.fit([*others(), *alone]).clusters["made"].residuals["job0"].noise
    assert noise[0] < 0.05 < 1 < noise[-1]


def test_rows_that_loading_bound_are_not_carried_over_to_another_cluster() -> None:
    plain = rows_of(0)[0]
    bound = [loaded(replace(plain, per_device_batch_size=b, step_time_s=truth(0, 1, 1, b)[0]), MODERATE) for b in (8, 12, 16, 64)]
    faster = [replace(row, cluster="faster", step_time_s=row.step_time_s / 2) for row in others()]
    carried = carried_rows("faster", "job0", [*others(), *bound, *faster])
    assert carried is not None
    assert [row.per_device_batch_size for row in carried[0]] == [8, 12, 16]


def test_what_was_measured_is_not_suggested_again_though_its_rate_differs() -> None:
    known = [row for row in mine() if row.num_gpus <= 2]
    model = ScalingModel.fit([*others(), *known])
    asked = [replace(row, input_samples_per_s=1000.0) for row in mine() if row.placement == "4"]
    suggested = {(each.query.placement, each.query.per_device_batch_size) for each in model.suggest_next(asked)}
    assert suggested
    assert not suggested & {(row.placement, row.per_device_batch_size) for row in known}


def test_without_rates_there_is_no_input_in_the_equation() -> None:
    fitted = ScalingModel.fit(others()).clusters["made"].fit
    assert not [name for name in fitted.names if name.endswith(" input")]
    with_rates = ScalingModel.fit(mine()).clusters["made"].fit
    assert [name for name in with_rates.names if name.endswith(" input")] == ["job0 input"]


def test_the_rate_is_a_column_of_rows_that_a_saved_model_keeps(tmp_path: Path) -> None:
    head = "cluster,model,num_nodes,num_gpus,placement,per_device_batch_size,step_time_s,input_samples_per_s"
    lines = [f"made,job0,1,1,1,{row.per_device_batch_size},{row.step_time_s},{SHARED_BY_FOUR}" for row in mine() if row.num_gpus == 1]
    (tmp_path / "rows.csv").write_text("\n".join([head, *lines, "made,job0,1,1,1,8,1,"]))
    rows = read_rows(tmp_path / "rows.csv")
    assert [row.input_samples_per_s for row in rows] == [SHARED_BY_FOUR] * len(BATCHES) + [None]
    model = ScalingModel.fit([*others(), *rows[:-1]])
    model.save(tmp_path / "model.json")
    asked = [row for row in mine() if row.placement == "4"]
    again = ScalingModel.load(tmp_path / "model.json").predict(asked)
    assert [f.step_time_s for f in again] == pytest.approx([f.step_time_s for f in model.predict(asked)], rel=1e-5)
    (tmp_path / "rows.csv").write_text(f"{head}\nmade,job0,1,1,1,8,1,0")
    with pytest.raises(UsageError, match="line 2, column input_samples_per_s"):
        read_rows(tmp_path / "rows.csv")
