"""`gpualloc bench` as a command: refusals, output, interruption, resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from typer.testing import CliRunner

from gpualloc.bench import isolation, runner
from gpualloc.cli.app import app
from gpualloc.records import BenchCase, Measurement, from_json
from gpualloc.store import ResultsStore
from tests.store.sample_measurements import measured

TINY = ["--device", "cpu", "--workload", "image", "--image-size", "32", "--steps", "1", "--repeats", "1", "--warmup-steps", "1"]


@pytest.fixture(autouse=True)
def nothing_left(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert list((tmp_path / "temporary").glob("gpualloc*")) == []  # torch may keep a cache there


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[BenchCase]:
    """Cases are answered at once, with 0.1 s a step, and listed here."""
    ran: list[BenchCase] = []

    def run_case(case: BenchCase, **settings: object) -> Measurement:
        ran.append(case)
        return measured(case, 0.1, environment=settings["environment"])

    monkeypatch.setattr(runner, "run_case", run_case)
    monkeypatch.setattr(isolation, "why_busy", lambda device: None)  # else what the machine is busy with would be told
    return ran


def gpualloc(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from gpualloc.cli.app import main; main()", *arguments]


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(gpualloc(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp99"], "fp64, fp32, tf32, fp16, bf16"),
        (["--image-size", "0"], "choose 32 or more, up to 4096"),
        (["--image-size", "-5"], "choose 32 or more, up to 4096"),
        (["--image-size", "1000000000"], "choose 32 or more, up to 4096"),
        (["--image-size", "10O"], "--image-size '10O' is not a list of whole numbers"),
        (["--image-size", "100,,200"], "--image-size '100,,200' has an empty entry"),
        (["--gpus", "0"], "this benchmark runs on the CPU"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
        (["--model", "vgg"], "choose one of mobilenet_v2, resnet50"),
        (["--strategy", ""], "has an empty entry"),
        (["--data", "digits", "--workload", "llm"], "data 'digits' is images and the workload is llm"),
        (["--timeout-s", "0"], "--timeout-s 0 is out of range"),
        (["--timeout-s", "nan"], "--timeout-s nan is out of range"),
        (["--json", "--csv", "-"], "both print to stdout"),
        (["--image-size", "300..100"], "--image-size 300..100 is not a range"),
        (["--pin-memory", "yes"], "--pin-memory 'yes' is unknown; choose on, off or on,off"),
        (["--precision", "fp61"], "did you mean fp64?"),
        (["--rounds", "0"], "--rounds 0 is out of range; choose 1 to 100"),
        (["--on-oom", "halv"], "--on-oom 'halv' is unknown; choose one of mark, halve"),
        (["--preset", "quik"], "choose one of quick, study, llm; did you mean quick?"),
        (["--preset", "quick", "--study", "x.yaml"], "--study and --preset both name the cases"),
        (["--study", "no.yaml"], "study file no.yaml cannot be read"),
        (["--dry-run", "--resume"], "leave --resume and --csv out"),
        (["--channels-last", "on", "--workload", "llm"], "--channels-last is for workload image"),
        (["--device", "tpu"], "choose one of cuda, cpu"),
    ],
)
def test_a_usage_error_ends_the_command_before_any_process_starts(
    monkeypatch: pytest.MonkeyPatch, store_path: Path, arguments: list[str], message: str
) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    given = [] if "--device" in arguments else ["--device", "cpu"]
    done = CliRunner().invoke(app, ["bench", *given, *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not store_path.exists()


def test_the_table_goes_to_stdout_and_the_rest_to_stderr(made_up: list[BenchCase]) -> None:
    done = CliRunner().invoke(app, ["bench", *TINY])
    assert done.exit_code == 0
    assert [case.hook for case in made_up] == ["none", "none", "torch_fp16", "gpualloc_fp16"]
    assert "ddp/gpualloc_fp16" in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0].startswith("CPU, 2 gloo ranks, not comparable with a GPU")
    assert lines[1].startswith("data: image: synthetic")
    assert lines[2] == "[1/4] mobilenet_v2 32px fp32 single x1: 100.00 ms a step"
    assert lines[-1].endswith("see it again: gpualloc results show 1")


def test_json_holds_every_measurement(made_up: list[BenchCase]) -> None:
    done = CliRunner().invoke(app, ["bench", *TINY, "--json"])
    rows = json.loads(done.stdout)["measurements"]
    assert [from_json(row).case for row in rows] == made_up


def test_csv_to_a_file_and_to_stdout(made_up: list[BenchCase], tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["bench", *TINY, "--csv", "-"])
    assert len(printed.stdout.splitlines()) == 5
    written = CliRunner().invoke(app, ["bench", *TINY, "--csv", str(tmp_path / "rows.csv")])
    assert "ddp/none" in written.stdout
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 5
    failed = CliRunner().invoke(app, ["bench", *TINY, "--csv", str(tmp_path / "missing" / "rows.csv")])
    assert failed.exit_code == 1
    assert "gpualloc results export 3" in failed.stderr


def test_skipped_cases_are_no_failure_but_nothing_measured_is(made_up: list[BenchCase]) -> None:
    some = CliRunner().invoke(app, ["bench", *TINY, "--strategy", "ddp", "--hook", "none,torch_bf16"])
    assert some.exit_code == 0
    assert "torch refuses its bf16 hook" in some.stdout
    nothing = CliRunner().invoke(app, ["bench", *TINY, "--strategy", "ddp", "--hook", "torch_bf16"])
    assert nothing.exit_code == 1


@pytest.mark.parametrize("status", ["failed", "oom"])
def test_a_failed_case_makes_the_exit_code_1_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    def run_case(case: BenchCase, **settings: object) -> Measurement:
        if case.strategy == "single":
            return Measurement(case=case, status=status, reason="rank 0: made up")
        return measured(case, 0.1)

    monkeypatch.setattr(runner, "run_case", run_case)
    done = CliRunner().invoke(app, ["bench", *TINY, "--hook", "none"])
    assert done.exit_code == 1
    assert f"{status}: rank 0: made up" in done.stdout
    assert "[2/2] mobilenet_v2 32px fp32 ddp/none x2: 100.00 ms a step" in done.stderr


def test_resume_without_an_earlier_run_starts_one(made_up: list[BenchCase]) -> None:
    done = CliRunner().invoke(app, ["bench", *TINY, "--resume"])
    assert done.exit_code == 0
    assert done.stderr.startswith("nothing to resume")


def test_a_dry_run_lists_cases_skips_and_times_and_runs_nothing(made_up: list[BenchCase], store_path: Path) -> None:
    arguments = ["bench", *TINY, "--hook", "none,torch_bf16", "--channels-last", "off,on", "--dry-run"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()
    assert lines[1].split()[:5] == ["1", "mobilenet_v2", "32px", "fp32", "single"]
    assert "skipped: torch refuses its bf16 hook without NCCL, and gloo is what a CPU has" in lines
    assert "4 cases in about" in printed.stdout
    assert "2 skipped" in printed.stdout
    assert printed.stdout.splitlines()[-1] == "estimates: rough guess"
    planned = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [case["rounds"] for case in planned["cases"]] == [1, 1, 0, 1, 1, 0]
    assert planned["estimated_minutes"] > 0
    assert made_up == []
    assert not store_path.exists()


def test_estimates_come_from_the_store_once_it_has_the_case(made_up: list[BenchCase]) -> None:
    assert CliRunner().invoke(app, ["bench", *TINY, "--strategy", "single"]).exit_code == 0
    planned = json.loads(CliRunner().invoke(app, ["bench", *TINY, "--strategy", "single,ddp", "--dry-run", "--json"]).stdout)
    bases = [case["estimate"]["basis"] for case in planned["cases"]]
    assert bases[0] == "step measured before"
    assert bases[1] == "scaled from 1 earlier measurements of mobilenet_v2"


@pytest.mark.parametrize("width", ["80", "160"])
def test_the_example_study_is_planned(made_up: list[BenchCase], monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    example = Path(__file__).parents[2] / "examples" / "study.yaml"
    done = CliRunner().invoke(app, ["bench", "--device", "cpu", "--study", str(example), "--dry-run"])
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= int(width)
    assert "mobilenet_v2 300px bf16 ddp/gpualloc_bf16 x2 channels_last, 8 per rank" in " ".join(done.stdout.split())


def test_options_win_over_the_study_and_a_run_of_several_grids_is_resumed(made_up: list[BenchCase], tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text("""
strategy = "single"
steps = 1
repeats = 1
warmup-steps = 1
rounds = 2
[[grids]]
model = "mobilenet_v2"
image_size = [32, "64..96:32"]
[[grids]]
model = "gpt_small"
sequence_length = 16
""")
    arguments = ["bench", "--device", "cpu", "--study", str(study), "--precision", "bf16"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    sizes = [case.image_size_px or case.sequence_length for case in made_up]
    assert sorted(sizes) == [16, 16, 32, 32, 64, 64, 96, 96]
    assert {case.precision for case in made_up} == {"bf16"}
    again = CliRunner().invoke(app, [*arguments, "--resume"])
    assert again.stderr.startswith("going on with run 1, which has 4 finished cases")
    assert len(made_up) == 8
    assert CliRunner().invoke(app, [*arguments, "--resume", "--rounds", "3"]).exit_code == 0
    assert len(made_up) == 12


def test_what_the_budget_leaves_out_is_skipped_and_taken_up_by_resume(made_up: list[BenchCase]) -> None:
    arguments = ["bench", *TINY, "--hook", "none", "--image-size", "32,4096", "--batch-size", "8"]
    short = CliRunner().invoke(app, [*arguments, "--max-minutes", "1"])
    untried = "skipped: budget: did not fit into 1 min; go on with --resume\n  mobilenet_v2 4096px fp32 single x1, 8 per rank\n"
    assert untried in short.stdout  # once, whatever the number of its cases
    assert "mobilenet_v2, 4096 px" not in short.stdout
    assert [(case.strategy, case.image_size_px) for case in made_up] == [("single", 32), ("ddp", 32)]
    assert CliRunner().invoke(app, [*arguments, "--resume"]).exit_code == 0
    assert [(case.strategy, case.image_size_px) for case in made_up[2:]] == [("single", 4096), ("ddp", 4096)]


def test_a_disturbed_case_is_marked_and_its_notes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_case(case: BenchCase, **settings: object) -> Measurement:
        if case.strategy == "single":
            return measured(case, 0.1, disturbances=("all 3 repeats: GPU 0: power brake",))
        return measured(case, 0.1, notes=("1 of 3 repeats left out: GPU 0: power brake",))

    monkeypatch.setattr(runner, "run_case", run_case)
    done = CliRunner().invoke(app, ["bench", *TINY, "--hook", "none"])
    assert "*100.00" in done.stdout
    assert "* every repeat was disturbed, not to be compared; the first: all 3 repeats: GPU 0: power brake" in done.stdout
    assert "mobilenet_v2 32px fp32 ddp/none x2: 1 of 3 repeats left out: GPU 0: power brake" in done.stdout


def wait_for_line(stream: IO[str] | None, start: str) -> None:
    assert stream is not None
    for line in stream:
        if line.startswith(start):
            return
    raise AssertionError(f"no line starts with {start!r}")


def test_an_interrupted_run_is_kept_and_resumed(store_path: Path) -> None:
    arguments = ["bench", *TINY, "--hook", "none"]
    command = start(*arguments, "--json")
    wait_for_line(command.stderr, "[1/2]")
    children = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(signal.SIGINT)
    stdout, stderr = command.communicate(timeout=30)
    assert command.returncode == 130
    printed = json.loads(stdout)
    assert printed["status"] == "interrupted"
    assert [row["case"]["strategy"] for row in printed["measurements"]] == ["single"]
    assert "interrupted (SIGINT): add --resume to go on; run 1 is kept" in stderr
    # A zombie has ended; only this machine's process 1 is slow to notice.
    assert [child for child in psutil.wait_procs(children, timeout=5)[1] if child.status() != psutil.STATUS_ZOMBIE] == []
    with ResultsStore(store_path) as store:
        assert store.run(1).status == "interrupted"
        kept, _ = store.measurements(1)
    assert [row.case.strategy for row in kept] == ["single"]

    resumed = start(*arguments, "--resume", "--json")
    stdout, stderr = resumed.communicate(timeout=60)
    assert resumed.returncode == 0
    assert stderr.startswith("going on with run 1, which has 1 finished cases")
    run = json.loads(stdout)
    rows = [from_json(row) for row in run["measurements"]]
    assert (run["run_id"], run["status"]) == (1, "complete")
    assert rows[0] == kept[0]
    assert [(row.case.strategy, row.status) for row in rows] == [("single", "ok"), ("ddp", "ok")]
