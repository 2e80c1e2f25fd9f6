"""`gpualloc bench --quality`: real trainings end to end, and what a kept file shows."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from gpualloc.cli.quality import quality
from gpualloc.errors import GpuallocError, StoreError, UsageError
from gpualloc.quality.records import Experiment, write_experiment
from tests.quality.experiments import made_group
from tests.store.sample_measurements import CPU_ENVIRONMENT

app = typer.Typer()
app.command()(quality)


def run(*arguments: str, raises: type[GpuallocError] | None = None) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    if raises is None:
        assert done.exit_code == 0, (done.output, done.exception)
    else:
        assert isinstance(done.exception, raises), (done.output, done.exception)
    return done


def kept(path: Path) -> Path:
    """A file with a reference, a good and a bad hook."""
    runs = [*made_group((0.97, 0.972, 0.971)), *made_group((0.971, 0.972, 0.97), hook="gpualloc_fp16")]
    runs += made_group((0.90, 0.91, 0.905), hook="gpualloc_int8")
    write_experiment(path, Experiment(environment=CPU_ENVIRONMENT, runs=tuple(runs)))
    return path


def test_real_trainings_are_kept_and_not_run_again(tmp_path: Path) -> None:
    output = tmp_path / "quality.json"
    asked = ["--workload", "llm", "--hook", "gpualloc_fp16", "--sequence-length", "16", "--batch-size", "2", "--device", "cpu"]
    asked += ["--steps", "8", "--seeds", "2", "--output", str(output)]
    first = run(*asked)
    assert "[4/4] gpt_tiny 16tok fp32 ddp/gpualloc_fp16 x2 seed 1: loss" in first.stderr
    assert "fp32: reference, loss" in first.stdout
    assert "fp32, gpualloc_fp16: " in first.stdout
    before = output.read_text()
    again = run(*asked, "--timeout-s", "0.01", "--json")  # no training could finish in that time
    assert output.read_text() == before
    data = json.loads(again.stdout)
    assert [group["num_seeds"] for group in data["verdicts"]] == [2, 2]
    assert data["verdicts"][1]["sentence"].startswith("fp32, gpualloc_fp16: ")
    assert len(data["runs"][0]["curve"]) == 5
    part = run("--workload", "llm", "--hook", "none", *asked[4:], "--json")
    assert len(json.loads(part.stdout)["runs"]) == 2
    assert len(json.loads(output.read_text())["runs"]) == 4  # those that this command did not ask for are kept, too


def test_a_kept_file_is_shown_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path, figure = kept(tmp_path / "quality.json"), tmp_path / "curves.svg"
    text = run("--read", str(path)).stdout
    words = " ".join(text.split())
    assert "fp32, gpualloc_fp16: no difference in speed seen, accuracy unchanged within noise (97.1%, +0.0 points [-0.2, +0.2]" in words
    assert "fp32, gpualloc_int8: no difference in speed seen, accuracy worse (90.5%" in words
    assert max(map(len, text.splitlines())) <= 80
    pytest.importorskip("matplotlib")
    run("--read", str(path), "--plot", str(figure))
    assert "held-out accuracy" in figure.read_text()


def test_another_machines_file_is_not_added_to(tmp_path: Path) -> None:
    path = kept(tmp_path / "quality.json")
    done = run("--output", str(path), "--workload", "llm", "--device", "cpu", raises=UsageError)
    assert "holds trainings of another machine or version" in str(done.exception)


def test_refusals_come_before_any_training(tmp_path: Path) -> None:
    assert "not one whole number" in str(run("--image-size", "32,64", "--device", "cpu", raises=UsageError).exception)
    assert "empty entry" in str(run("--hook", "none,", "--device", "cpu", raises=UsageError).exception)
    assert "'tpu' is unknown" in str(run("--device", "tpu", raises=UsageError).exception)
    assert "does not end in" in str(run("--plot", "curves.gif", raises=UsageError).exception)
    assert "cannot be read" in str(run("--read", str(tmp_path / "missing.json"), raises=StoreError).exception)
    asked = ["--workload", "llm", "--device", "cpu", "--output", str(tmp_path / "missing" / "quality.json")]
    assert "choose another file with --output" in str(run(*asked, raises=StoreError).exception)
