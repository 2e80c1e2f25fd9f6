"""`gpualloc plan` as a user runs it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.plan.records import read_plan
from tests.plan.inputs import workload

ROOT = Path(__file__).parents[2]
EXAMPLE = str(ROOT / "examples" / "plan" / "workloads.yaml")
CLUSTER = str(ROOT / "examples" / "plan" / "cluster.yaml")
NODE = {"name": "n", "gpu_type": "A100", "num_gpus": 2, "memory_gib": 80}


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "store" / "results.sqlite"))


def run(*arguments: str, exit_code: int = 0, columns: int = 120) -> Any:
    done = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": str(columns)})
    assert done.exit_code == exit_code, done.output
    return done


def files(tmp_path: Path, *workloads: dict[str, Any], node: dict[str, Any] = NODE) -> tuple[str, str, str]:
    """Arguments of both files."""
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({"workloads": list(workloads)}))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"nodes": [node]}))
    return str(tmp_path / "w.yaml"), "--cluster", str(tmp_path / "c.yaml")


@pytest.mark.parametrize("columns", [80, 120, 160])
def test_the_table_fits_the_terminal_and_says_what_was_chosen_and_why_not(columns: int) -> None:
    done = run(EXAMPLE, "--cluster", CLUSTER, columns=columns)
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "\x1b" not in done.stdout
    text = " ".join(done.stdout.split())
    assert "* 4 x A100" in text
    assert "needs a node with 8 free, there are 7" in text
    assert "mean completion" in text
    assert "big: 0-3" in text
    assert "optimal (exact)" in text


def test_the_guide_shows_what_the_command_prints() -> None:
    shown = (ROOT / "docs" / "plan.md").read_text().split("```text\n")[1].split("```")[0].splitlines()
    printed = run(EXAMPLE, "--cluster", CLUSTER, columns=80).stdout.splitlines()
    assert len(shown) > 10
    assert [line for line in shown if line != "..." and line not in printed] == []


def test_json_says_all_that_the_tables_say_and_the_plan_file_is_its_plan(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = json.loads(run(EXAMPLE, "--cluster", CLUSTER, "--json", "--out", str(out)).stdout)
    assert result["plan"]["schema_version"] == 2
    assert json.loads(out.read_text()) == result["plan"]
    assert {each.workload for each in read_plan(out).assignments} == {"photos", "chat", "notes"}
    assert result["optimality_gap"] == pytest.approx(0, abs=1e-5)
    assert set(result["finish_time_fairness"]) == {"photos", "chat", "notes"}
    assert all(row["is_chosen"] or row["why_not"] for row in result["considered"])
    assert result["cost"]["currency"] == "USD"


def test_the_same_seed_gives_the_same_plan(tmp_path: Path) -> None:
    plans = [
        json.loads(run(EXAMPLE, "--cluster", CLUSTER, "--json", "--method", "scalable", "--seed", "3").stdout)["plan"] for _ in range(2)
    ]
    assert [{**plan, "created_at_utc": None} for plan in plans[:1]] == [{**plan, "created_at_utc": None} for plan in plans[1:]]


def test_a_plan_made_again_shows_the_difference(tmp_path: Path) -> None:
    arguments = files(tmp_path, workload("a"))
    current = str(tmp_path / "plan.json")
    run(*arguments, "--out", current)
    files(tmp_path, workload("a"), workload("b"))
    done = run(*arguments, "--current", current, "--out", current)
    assert "a stays: 1 x A100 (n: 0)" in done.stdout
    assert "b starts: 1 x A100 (n: 1)" in done.stdout
    files(tmp_path, workload("b"))
    changes = json.loads(run(*arguments, "--current", current, "--json").stdout)["difference"]
    assert {change["workload"]: change["kind"] for change in changes} == {"b": "stays", "a": "ends"}


def test_an_impossible_plan_ends_with_3_and_the_smallest_change(tmp_path: Path) -> None:
    arguments = files(tmp_path, workload("a", deadline_h=0.5))
    done = run(*arguments, exit_code=3)
    assert "too slow: 1.00 h, the deadline is in 0.5 h" in " ".join(done.stdout.split())
    assert "the smallest change that makes it possible: a: a deadline of at least 1" in done.stderr
    result = json.loads(run(*arguments, "--json", exit_code=3).stdout)
    assert result["plan"] is None
    assert result["smallest_change"][0]["text"].startswith("a: a deadline of at least 1")
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "best"], "'best' is not one of"),
        (["--min-efficiency", "2"], "--min-efficiency 2 is not a share; choose 0 to 1"),
        (["--hysteresis", "-1"], "--hysteresis -1 is not a share"),
        (["--watch", "--interval-s", "0"], "--interval-s 0 is out of range"),
        (["--out", "/nowhere/plan.json"], "there is no folder /nowhere"),
        (["--current", "/nowhere/plan.json"], "cannot read the plan /nowhere/plan.json"),
        (["--cluster", "/nowhere/c.yaml"], "cannot read the cluster file /nowhere/c.yaml"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    given = [] if "--cluster" in arguments else ["--cluster", CLUSTER]
    done = run(EXAMPLE, *given, *arguments, exit_code=2)
    assert message in " ".join(done.output.replace("│", " ").split())


def test_without_a_cluster_file_this_machine_is_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpualloc.watching.gpus import NoGpusError

    def no_gpus(*arguments: object, **options: object) -> None:
        raise NoGpusError("none")

    monkeypatch.setattr("gpualloc.watching.gpus.GpuReader", no_gpus)
    path, *_ = files(
        tmp_path, workload("a", model="gpt_tiny", kind="llm", image_size_px=None, sequence_length=64, rates={}, precisions=["fp32"])
    )
    result = json.loads(run(path, "--json").stdout)
    (slot,) = result["plan"]["measuring"]
    assert slot["gpu_type"] == "cpu"
    assert slot["command"][:4] == ["gpualloc", "bench", "--device", "cpu"]
    assert result["plan"]["cluster"]["nodes"][0]["device"] == "cpu"
    bench = [*slot["command"][1:], "--dry-run", "--json"]
    assert json.loads(CliRunner().invoke(app, bench).stdout), shlex.join(bench)


def test_watch_prints_a_line_for_each_decision_and_ends_cleanly(tmp_path: Path) -> None:
    arguments = files(tmp_path, workload("a"))
    out = tmp_path / "plan.json"
    command = [sys.executable, "-c", "from gpualloc.cli.app import main; main()", "plan", *arguments]
    process = subprocess.Popen(
        [*command, "--watch", "--json", "--interval-s", "0.05", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        first = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [line["event"] for line in first] == ["arrived", "starts"]
        files(tmp_path, workload("a"), workload("b"))
        second = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [(line["workload"], line["event"]) for line in second] == [("b", "arrived"), ("b", "starts")]
        assert {each.workload for each in read_plan(out).assignments} == {"a", "b"}
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, rest, errors) == (130, "", "gpualloc: interrupted (SIGINT)\n")
