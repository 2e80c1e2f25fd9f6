"""`gpualloc study`: with made measurements for its course, and once for real on the CPU."""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpualloc.bench import isolation, runner
from gpualloc.bench.interruption import Interrupted
from gpualloc.cli.app import app
from gpualloc.records import BenchCase, Measurement
from gpualloc.store import ResultsStore
from tests.store.sample_measurements import measured

SIZES = "64,96,128,160,192,224,256"
CPU = ("--device", "cpu")


def study(*arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["study", *CPU, *arguments])
    assert done.exit_code == exit_code, done.output
    return done


@pytest.fixture
def machine(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], list[BenchCase]]:
    """Makes the engine measure on a machine whose efficiency at every size is given; the cases that were run come back."""

    def install(efficiency: Callable[[int], float]) -> list[BenchCase]:
        ran: list[BenchCase] = []

        def run_case(case: BenchCase, **_: object) -> Measurement:
            ran.append(case)
            size = case.image_size_px or 0
            step_time_s = size**2 * 1e-6 / (efficiency(size) if case.world_size > 1 else 1)
            return measured(case, step_time_s, spread=0.005, wall_time_s=1.0)

        monkeypatch.setattr(runner, "run_case", run_case)
        monkeypatch.setattr(isolation, "why_busy", lambda device: None)
        return ran

    return install


def test_the_fewest_runs_answer_and_the_conclusion_is_written(machine: Any, store_path: Path, tmp_path: Path) -> None:
    ran = machine(lambda size: 1 / (1 + 0.25 * (153.6 / size) ** 2))  # 80 % at 153.6 px
    done = study("--image-size", SIZES, "--out", str(tmp_path / "out"))
    words = " ".join(done.stdout.split())
    assert "2 ranks keep 80% efficiency from 155 px [15" in words
    assert "Certain: 128 fails certainly, 160 pays certainly, and no size asked for is between." in words
    assert len(ran) <= 10 < 14
    data = json.loads((tmp_path / "out" / "study.json").read_text())
    assert data["is_certain"] is True
    assert data["crossing"]["value"] == pytest.approx(153.6, abs=1.5)  # on a straight line between 128 and 160
    assert {64, 128, 160, 256} <= {point["size"] for point in data["points"]}
    assert data["num_possible_cases"] == 14
    text = (tmp_path / "out" / "study.md").read_text()
    assert text.startswith("# Do two ranks keep 80% efficiency training mobilenet\\_v2".replace("\\_", "_"))
    assert "| 160 | 25.60 |" in text
    assert "does not pay" in text
    with ResultsStore(store_path) as store:
        run = store.run()
        assert (run.status, run.case_counts) == ("complete", {"ok": len(ran)})


def test_further_rounds_are_pooled_where_it_is_too_close(machine: Any, store_path: Path) -> None:
    ran = machine(lambda size: 0.8)
    data = json.loads(study("--image-size", "128", "--json").stdout)
    assert len(ran) == 8
    assert (data["is_certain"], data["stopped_because"]) == (False, "4 rounds leave 128 too close to call")
    assert [step["rounds"] for step in data["steps"]] == [1, 2, 3, 4]
    with ResultsStore(store_path) as store:
        rows, _ = store.measurements(data["run_id"])
    assert [(row.num_rounds, len(row.repeat_step_times_s)) for row in rows] == [(4, 20), (4, 20)]


def test_the_conclusion_is_kept_beside_the_results(machine: Any, store_path: Path) -> None:
    machine(lambda size: 0.9)
    done = study("--image-size", "128", "--json")
    data = json.loads(done.stdout)
    assert data["answer"].startswith("Yes: two ranks reach 90% efficiency at 128 px")
    assert (store_path.parent / "studies" / str(data["run_id"]) / "study.md").exists()


def test_the_budget_ends_it_before_a_step_that_does_not_fit(machine: Any) -> None:
    ran = machine(lambda size: 0.5 + size / 512)
    done = study("--image-size", SIZES, "--max-minutes", "0.1", "--json", exit_code=1)
    assert not ran  # a case is expected to take longer than 6 s in all
    data = json.loads(done.stdout)
    assert data["is_certain"] is False
    assert "of the budget are left" in data["stopped_because"]


def test_an_interrupt_concludes_from_what_there_is(machine: Any, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = machine(lambda size: 0.9)
    run_case = runner.run_case

    def interrupted(case: BenchCase, **settings: Any) -> Measurement:
        if len(ran) == 3:
            raise Interrupted(signal.SIGINT)
        return run_case(case, **settings)

    monkeypatch.setattr(runner, "run_case", interrupted)
    done = study("--image-size", SIZES, "--json", exit_code=130)
    data = json.loads(done.stdout)
    assert data["stopped_because"] == "it was interrupted"
    assert [point["size"] for point in data["points"]] == [256]
    with ResultsStore(store_path) as store:
        assert store.run().status == "interrupted"


@pytest.mark.usefixtures("store_path")
def test_a_dry_run_runs_nothing(machine: Any, store_path: Path) -> None:
    ran = machine(lambda size: 0.9)
    data = json.loads(study("--image-size", SIZES, "--dry-run", "--json").stdout)
    assert (data["most_cases"], data["num_possible_cases"], len(data["first_step"]["cases"])) == (12, 14, 2)
    assert "at most 12 of 14 cases" in study("--image-size", SIZES, "--dry-run").stdout
    assert not ran
    assert not store_path.exists()


@pytest.mark.usefixtures("store_path")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-minutes", "0"], "--max-minutes 0 is out of range"),
        (["--min-efficiency", "80"], "choose a fraction above 0, up to 1"),
        (["--strategy", "single"], "name one of each"),
        (["--hook", "none,torch_fp16"], "name one of each"),
        (["--image-size", "64,128", "--batch-size", "2,4"], "give several values of one"),
        (["--precision", "fp99"], "--precision 'fp99' is unknown"),
        (["--model", "resnet999"], "--model 'resnet999' is unknown"),
        (["--on-busy", "pray"], "--on-busy 'pray' is unknown"),
        (["--gpus", "2"], "--gpus and --ranks-per-gpu need a GPU"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    assert message in study(*arguments, exit_code=2).stderr


def test_for_real(store_path: Path) -> None:
    """The smallest model at the smallest size: two cases, unless another process disturbs them."""
    small = ("--image-size", "32", "--batch-size", "2", "--warmup-steps", "2", "--steps", "1", "--repeats", "2", "--ci-percent", "100")
    done = CliRunner().invoke(app, ["study", *CPU, *small, "--min-efficiency", "0.02", "--max-minutes", "0.4", "--json"])
    data = json.loads(done.stdout)
    with ResultsStore(store_path) as store:
        run = store.run()
        rows, problems = store.measurements(run.run_id)
    assert not problems
    assert data["num_cases"] == len(rows) == 2
    assert [(row.case.strategy, row.case.world_size, row.status) for row in rows] == [("single", 1, "ok"), ("ddp", 2, "ok")]
    assert sum(step["seconds"] for step in data["steps"]) < 60
    if not any(row.disturbances for row in rows):
        assert done.exit_code == 0
        assert data["answer"].startswith(("Yes: two ranks reach", "Too close to call: two ranks reach"))
        advised = CliRunner().invoke(
            app, ["advise", "--run", "1", "--steps", "900", "--price", "2 EUR", "--min-efficiency", "0.02", "--json"]
        )
        options = {option["num_gpus"]: option for option in json.loads(advised.stdout)["options"]}
        for count, row in zip((1, 2), rows, strict=True):
            step_time_s = statistics.geometric_mean(row.repeat_step_times_s)
            assert options[count]["time_s"]["value"] == pytest.approx(900 / count * step_time_s)
            assert options[count]["cost"]["value"] == pytest.approx(2 * 900 * step_time_s / 3600)
