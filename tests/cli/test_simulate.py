"""`gpualloc simulate` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app

SMALL = ("simulate", "--jobs", "6", "--hours", "0.3", "--seeds", "2", "--cluster", "mixed64")


def run(*arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == exit_code, done.output
    return done


def test_json_has_every_figure_with_its_interval_and_is_the_same_again(tmp_path: Path) -> None:
    file = tmp_path / "timeline.json"
    arguments = (*SMALL, "--policy", "gpualloc,greedy", "--json", "--timeline", str(file))
    first, again = (json.loads(run(*arguments).stdout) for _ in range(2))
    rows = first["policies"]
    assert [row["policy"] for row in rows] == ["gpualloc", "greedy"]
    assert rows[0]["mean_jct_over_first_policy"]["mean"] == 1
    assert rows[1]["figures"]["mean_jct_h"]["low"] <= rows[1]["figures"]["mean_jct_h"]["mean"]
    for data in (first, again):
        for row in data["policies"]:
            for summary in row["by_seed"]:
                del summary["mean_plan_ms"]  # a wall-clock time
    assert first == again
    assert {run["policy"] for run in json.loads(file.read_text())} == {"gpualloc", "greedy"}


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_table_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(*SMALL[:-3], "1", "--policy", "gpualloc,fifo").stdout.splitlines()
    table = [line for line in lines if line.startswith(("policy", "gpualloc ", "fifo", "t4", "a100", "rtx2080ti"))]
    assert len(table) == 6
    assert max(map(len, table)) <= width


def test_a_trace_and_a_cluster_of_ones_own(tmp_path: Path) -> None:
    trace, cluster = tmp_path / "jobs.csv", tmp_path / "cluster.yaml"
    trace.write_text("job_id,submit_time_s,job_type\na,0,cifar10\nb,60,bert\n")
    cluster.write_text("nodes: [{gpu_type: a100, nodes: 1, gpus_per_node: 8, price_per_gpu_hour: 2}]\n")
    arguments = (
        "simulate",
        "--trace",
        str(trace),
        "--cluster",
        str(cluster),
        "--policy",
        "gpualloc",
        "--seeds",
        "1",
        "--work-error",
        "none",
    )
    data = json.loads(run(*arguments, "--failures", "50", "--json").stdout)
    (summary,) = data["policies"][0]["by_seed"]
    assert summary["num_jobs"] == 2
    assert summary["cost"] == pytest.approx(2 * summary["gpu_hours"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "gready"), "did you mean greedy"),
        (("--jobs", "0"), "--jobs 0 is out of range"),
        (("--hours", "0"), "a time above 0"),
        (("--work-error", "much"), "neither a share such as 0.3 nor none"),
        (("--work-error", "1.5"), "from 0 to below 1"),
        (("--cluster", "big"), "neither a preset"),
        (("--trace", "none.csv"), "cannot be read"),
        (("--rates", "none"), "holds no CSV file"),
        (("--failures", "0"), "hours between failures"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(arguments: tuple[str, ...], words: str) -> None:
    done = run("simulate", *arguments, exit_code=2)
    assert words in done.output
    assert "seed" not in done.output
