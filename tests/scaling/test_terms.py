"""The terms of a forecast: they add up, and on made clusters each is what it was made of."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.scaling import Forecast, ScalingModel, StepTerms
from tests.scaling.test_forecast import rows_of, truth
from tests.scaling.test_input import SHARED_BY_FOUR, mine, others

ADDED = ("launch_floor_s", "arithmetic_s", "contention_s", "exposed_comm_s", "input_wait_s", "correction_s")


@pytest.fixture(scope="module")
def model() -> ScalingModel:
    """job0's loaders keep up with two GPUs and not with four; the other jobs' are not known."""
    return ScalingModel.fit([*others(), *(row for row in mine() if row.num_gpus <= 2)])


def terms_of(forecast: Forecast) -> StepTerms:
    assert forecast.terms is not None
    return forecast.terms


def test_they_add_up_to_the_step(model: ScalingModel) -> None:
    for forecast in model.predict([*mine(), *others()]):
        terms = terms_of(forecast)
        assert sum(getattr(terms, name) for name in ADDED) == pytest.approx(forecast.step_time_s, rel=1e-9)
        assert terms.hidden_comm_s + terms.exposed_comm_s == pytest.approx(terms.comm_s, rel=1e-9)
        assert min(terms.launch_floor_s, terms.arithmetic_s, terms.hidden_comm_s, terms.exposed_comm_s, terms.input_wait_s) >= 0


def test_floor_and_arithmetic_are_those_of_the_job_and_one_gpu_has_no_communication(model: ScalingModel) -> None:
    for job in (0, 1):
        alone = [row for row in (mine() if job == 0 else rows_of(1)) if row.num_gpus == 1]
        found = [terms_of(forecast) for forecast in model.predict(alone)]
        assert [terms.launch_floor_s for terms in found] == pytest.approx([0.02 * (job + 1)] * 4, rel=0.15)
        assert [terms.arithmetic_s for terms in found] == pytest.approx(
            [0.002 * (job + 1) * row.per_device_batch_size for row in alone], rel=0.15
        )
        assert {(terms.comm_s, terms.exposed_comm_s, terms.contention_s) for terms in found} == {(0.0, 0.0, 0.0)}


def test_waiting_for_input_is_what_a_step_takes_beyond_the_rest(model: ScalingModel) -> None:
    two, four = [row for row in mine() if row.num_nodes == 1 and row.num_gpus in (2, 4) and row.per_device_batch_size == 64]
    keeping_up, bound = model.predict([two, four])
    assert terms_of(keeping_up).input_wait_s < 0.01 * two.step_time_s
    loading_s = 4 * 64 / SHARED_BY_FOUR
    assert terms_of(bound).input_wait_s == pytest.approx(loading_s - truth(0, 1, 4, 64)[0], rel=0.2)
    assert (terms_of(keeping_up).is_input_bound, terms_of(bound).is_input_bound) == (False, True)
    assert any("do not keep up with 4 GPUs" in words for words in bound.basis)
    assert not any("keep up" in words for words in keeping_up.basis)


def test_a_refusal_has_none(model: ScalingModel) -> None:
    assert model.predict([replace(mine()[0], model="none")])[0].terms is None


def test_the_command_shows_them(model: ScalingModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m.json")
    (tmp_path / "q.csv").write_text("cluster,model,num_nodes,num_gpus,per_device_batch_size\nmade,job0,1,4,64\nmade,none,1,1,8\n")
    asked = ["forecast", "predict", "--model", str(tmp_path / "m.json"), "--csv", str(tmp_path / "q.csv")]
    bound, refused = json.loads(CliRunner().invoke(app, [*asked, "--terms", "--json"]).stdout)
    (forecast,) = ScalingModel.load(tmp_path / "m.json").predict(
        [replace(row, placement=None) for row in mine() if row.placement == "4"][3:]
    )
    assert bound["terms"] == pytest.approx(asdict(terms_of(forecast)))
    assert refused["terms"] is None
    assert "terms" not in json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)[0]
    shown = CliRunner().invoke(app, [*asked, "--terms"], env={"COLUMNS": "160"}).stdout
    assert "arithmetic" in shown
    assert f"{bound['terms']['input_wait_s'] * 1e3:.2f}" in shown
