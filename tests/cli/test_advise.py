"""`gpualloc advise` as a user runs it, on a results file with made measurements whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.store import ResultsStore
from tests.advice.made_runs import EIGHT_GPUS, scaling_run
from tests.findings.studied_runs import batches_run, study_run
from tests.store.sample_measurements import CPU_ENVIRONMENT, GPU_ENVIRONMENT, cpu_run

JOB = ("--dataset-size", "1152000", "--epochs", "10")


def advise(*arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["advise", *arguments])
    assert done.exit_code == exit_code, done.output
    return done


def json_of(*arguments: str) -> dict[str, Any]:
    return dict(json.loads(advise(*arguments, "--json").stdout))


@pytest.fixture
def scaled(store_path: Path) -> Path:
    """Run 1: a study of other sizes on another GPU; run 2: one to eight H100."""
    with ResultsStore(store_path) as store:
        for environment, rows in ((GPU_ENVIRONMENT, [*study_run(), *batches_run()]), (EIGHT_GPUS, scaling_run())):
            run_id = store.begin_run(command="gpualloc bench", options={}, environment=environment)
            for row in rows:
                store.add(run_id, row)
            store.finish_run(run_id, "complete")
    return store_path


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_answer_comes_first_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = advise(*JOB, "--price", "2 EUR", "--no-forecast").stdout
    words = " ".join(text.split())
    assert words.startswith("Yes, train mobilenet_v2 at 200 px on 4 GPUs (ddp/none, fp16, 64 per GPU): 3.50x")
    assert "takes 5.7 h" in words
    assert "45.72 [45.63, 45.81] EUR" in words
    assert "learning rate x 4, warmed up over the first 5 epochs" in words
    assert max(map(len, text.splitlines())) <= width
    table = text[text.index("GPUs  ") :]
    chosen = next(line for line in table.splitlines() if line.strip().startswith("*"))
    assert chosen.split()[:3] == ["*4", "ddp/none", "fp16"]
    assert ("the fastest that keeps 80% efficiency" in table) or width < 160 or "the fastest that keeps 80% …" in table


@pytest.mark.usefixtures("scaled")
def test_json_holds_every_figure_and_the_shipped_price_is_an_example() -> None:
    data = json_of(*JOB, "--no-forecast")
    assert data["rent"] == {
        "amount_per_gpu_hour": 3.99,
        "currency": "USD",
        "described": "Lambda, 2026-09-20: https://lambda.ai/instances, in instances of 8",
        "is_example": True,
    }
    (chosen,) = [option for option in data["options"] if option["is_chosen"]]
    assert chosen["num_gpus"] == 4
    assert chosen["cost"]["value"] == pytest.approx(45.71 / 2 * 3.99, abs=0.1)
    assert {option["why"] for option in data["options"] if not option["is_chosen"]} >= {"below 80% efficiency"}
    assert data["is_certain"] is True


@pytest.mark.usefixtures("scaled")
def test_counts_that_were_not_run_are_forecast_and_marked() -> None:
    data = json_of(*JOB, "--gpus", "1,2,3,4")
    sources = {(option["num_gpus"], option["case"]["precision"]): option["source"] for option in data["options"]}
    assert sources[2, "fp16"] == "measured"
    assert sources[3, "fp16"] == "forecast"
    three = next(option for option in data["options"] if (option["num_gpus"], option["case"]["precision"]) == (3, "fp16"))
    assert three["forecast_kind"] == "interpolates"
    assert three["efficiency"]["low"] < three["efficiency"]["value"] < three["efficiency"]["high"]
    assert 0.875 < three["efficiency"]["value"] < 0.95  # between those of two and of four
    assert three["basis"]
    far = json_of("--gpus", "1024")
    refused = [option for option in far["options"] if option["num_gpus"] == 1024]
    assert refused
    assert all(option["samples_per_s"] is None and "not enough evidence" in option["note"] for option in refused)
    assert "not enough evidence" in advise("--gpus", "1024").stdout


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize("width", [80, 160])
def test_other_kinds_of_gpu_are_carried_over_and_marked(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    asked = ("--other-gpu", "NVIDIA L40S", "--other-gpu", "NVIDIA B200:2.5")
    text = advise(*JOB, *asked).stdout
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text[text.index("On other kinds of GPU: carried over, not measured") :].split())
    assert "NVIDIA L40S: computing 0.39 times as fast as NVIDIA H100 80GB HBM3 (published memory bandwidths, 864 and 3,350 GB/s)" in words
    assert "NVIDIA B200: computing 2.50 times as fast as NVIDIA H100 80GB HBM3 (as given), links as fast; 6.69 USD per GPU-hour" in words
    l40s, b200 = json_of(*JOB, *asked)["other_gpus"]
    assert [option["num_gpus"] for option in l40s["options"]] == [1, 2, 4, 8]
    assert {option["kind"] for option in (*l40s["options"], *b200["options"])} == {"carried over"}
    assert l40s["options"][0]["speedup"]["value"] < 0.5 < 2 < b200["options"][0]["speedup"]["value"]
    assert l40s["options"][0]["cost"] is None  # the shipped prices have none
    assert b200["options"][2]["cost"]["low"] < b200["options"][2]["cost"]["value"] < b200["options"][2]["cost"]["high"]
    assert json_of(*JOB)["other_gpus"] == []


@pytest.mark.usefixtures("scaled")
def test_another_gpu_model_and_run_can_be_named() -> None:
    text = advise("--gpu", "nvidia h200", "--model", "gpt_small", "--no-forecast", "--run", "1").stdout
    assert "2 GPUs keep 80% efficiency from 12 samples per rank" in text
    assert "4 GPUs keep 80% efficiency from 297 px [294, 299] at batch 64" in advise("--run", "1", "--model", "mobilenet_v2").stdout


@pytest.mark.usefixtures("scaled")
def test_buying_is_compared_with_renting() -> None:
    data = json_of(*JOB, "--buy", "4", "--jobs-per-month", "100")["purchase"]
    hours_of_job = 4 * 11_520_000 / 560 / 3600
    assert data["load_gpu_hours_per_year"] == pytest.approx(1200 * hours_of_job, rel=1e-3)
    assert data["purchase_price"] == 4 * 39_625
    text = " ".join(advise(*JOB, "--buy", "4", "--jobs-per-month", "100").stdout.split())
    assert "Buy: 4 GPUs for 158,500 USD pays back in 1.5 years" in text
    assert "load: buying pays above" in text


@pytest.mark.usefixtures("scaled")
def test_a_price_book_of_ones_own_comes_first(scaled: Path) -> None:
    entry = "gpu: H100, names: 'NVIDIA H100.*', provider: ours, price_per_gpu_hour: 1.5, currency: EUR, source: us, date: 2026-11-01"
    (scaled.parent / "prices.yaml").write_text(f"rent:\n  - {{{entry}}}\n")
    assert json_of(*JOB)["rent"]["amount_per_gpu_hour"] == 1.5
    assert json_of(*JOB, "--provider", "aws")["rent"]["amount_per_gpu_hour"] == 6.88
    assert "those that have one: ours, Lambda, AWS" in advise("--provider", "nobody", exit_code=2).stderr


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--price", "0 EUR"], "--price '0 EUR' is out of range; choose an amount above 0"),
        (["--price", "-2 EUR"], "choose an amount above 0"),
        (["--price", "2.50"], "has no currency"),
        (["--budget", "100 USD", *JOB, "--price", "2 EUR"], "--budget is in USD and the price in EUR"),
        (["--min-efficiency", "80"], "choose a fraction above 0, up to 1"),
        (["--gpus", "0"], "--gpus 0 is out of range"),
        (["--buy", "0"], "--buy 0 is out of range"),
        (["--buy", "4"], "--buy needs the load"),
        (["--buy", "4", "--jobs-per-month", "5"], "--jobs-per-month needs the size of a job"),
        (["--jobs-per-month", "5"], "name their number: --buy"),
        (["--deadline", "3"], "--deadline '3' is no duration"),
        (["--deadline", "3h"], "needs the size of the job"),
        (["--precision", "fp99"], "--precision 'fp99' is unknown"),
        (["--other-gpu", "NVIDIA L4:fast"], "--other-gpu 'NVIDIA L4:fast' is not NAME, NAME:COMPUTE or NAME:COMPUTE:LINK"),
        (["--other-gpu", "NVIDIA L4:0"], "--other-gpu 'NVIDIA L4:0' is not NAME"),
        (["--other-gpu", "NVIDIA L4", "--no-forecast"], "--other-gpu rests on forecasts"),
        (["--gpu-memory-gib", "-1"], "--gpu-memory-gib -1 is out of range"),
        (["--prices", "/nowhere/prices.yaml"], "the price book /nowhere/prices.yaml cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    done = advise(*arguments, exit_code=2)
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.usefixtures("scaled")
def test_what_cannot_be_met_exits_with_3() -> None:
    done = advise(*JOB, "--deadline", "1h", exit_code=3)
    assert "no option meets what was asked: the deadline is 1.00 h" in done.stderr


@pytest.mark.usefixtures("store_path")
def test_before_anything_was_measured_there_is_a_memory_estimate_and_a_command() -> None:
    done = advise("--model", "gpt2", "--precision", "bf16", "--batch-size", "64", "--gpu-memory-gib", "8", "--gpus", "4", exit_code=1)
    assert "not enough evidence: nothing was measured yet; measure it next: gpualloc bench --model gpt2" in done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    (ddp,) = [words for words in lines if words[:2] == ["bf16", "ddp"]]
    (fsdp,) = [words for words in lines if words[:3] == ["bf16", "fsdp", "4"]]
    assert float(ddp[3]) > float(fsdp[3])
    assert ddp[4] == "no"
    assert "not enough evidence" in advise(exit_code=1).stderr


def test_cpu_ranks_have_no_price_unless_one_is_given(store_path: Path) -> None:
    with ResultsStore(store_path) as store:
        run_id = store.begin_run(command="x", options={}, environment=CPU_ENVIRONMENT)
        for row in cpu_run():
            store.add(run_id, row)
    text = advise("--steps", "100").stdout
    assert "no cost: no price is known for one rank on AMD EPYC 7763" in text
    assert "CPU, not comparable with a GPU" in text
    assert json_of("--steps", "100")["rent"] is None
    assert all(option["cost"] is None for option in json_of("--steps", "100")["options"])
