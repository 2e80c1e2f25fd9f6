"""The regression gate: a benchmark that is really slowed is caught, an unchanged one passes, what cannot be compared is refused."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate

pytestmark = pytest.mark.clock

SUITE = """
import os
import time

def work():
    time.sleep(0.01 + float(os.environ.get("SLOWED_BY_S", "0")))

def test_work(benchmark):
    benchmark.pedantic(work, rounds=20, warmup_rounds=1)

def test_other_work(benchmark):
    benchmark.pedantic(lambda: time.sleep(0.01), rounds=20, warmup_rounds=1)
"""


def run_suite(folder: Path, name: str, **variables: str) -> Path:
    """Runs the suite with pytest-benchmark, as a user does."""
    (folder / "bench_work.py").write_text(SUITE)
    output = folder / f"{name}.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull]
    command += [str(folder / "bench_work.py"), f"--benchmark-json={output}"]
    subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True, timeout=120)
    return output


def made(medians_us: dict[str, float], *, iqr_us: float = 1.0, cpu: str = "EPYC", device: str = "NVIDIA H200") -> dict[str, Any]:
    """A file as pytest-benchmark writes it, as far as the gate reads it."""
    benchmarks = [
        {
            "fullname": name,
            "extra_info": {"device": device},
            "stats": {"median": median * 1e-6, "min": median * 0.95e-6, "iqr": iqr_us * 1e-6, "data": [median]},
        }
        for name, median in medians_us.items()
    ]
    return {"machine_info": {"machine": "x86_64", "cpu": {"brand_raw": cpu, "count": 16}}, "benchmarks": benchmarks}


def run_gate(folder: Path, *files: dict[str, Any], options: tuple[str, ...] = ()) -> int:
    paths = []
    for number, content in enumerate(files):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(json.dumps(content))
    return gate.main([*map(str, paths), *options])


def test_a_slowed_benchmark_is_caught_and_an_unchanged_one_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = run_suite(tmp_path, "before")
    again = run_suite(tmp_path, "again")
    slowed = run_suite(tmp_path, "slowed", SLOWED_BY_S="0.01")
    assert gate.main([str(before), str(again)]) == 0
    assert "nothing slower" in capsys.readouterr().out
    assert gate.main([str(before), str(slowed)]) == gate.EXIT_SLOWER
    done = capsys.readouterr()
    assert "1 slower" in done.err
    assert [line.split()[-1] for line in done.out.splitlines()[1:]] == ["slower", "same"]
    assert gate.main([str(slowed), str(before)]) == 0  # the other way round it is an improvement


@pytest.mark.parametrize(
    ("old_us", "new_us", "iqr_us", "expected"),
    [(100, 109, 1, 0), (100, 112, 1, 1), (100, 85, 1, 0), (100, 112, 5, 0), (100, 140, 5, 1)],
)
def test_the_tolerance_grows_with_the_spread_of_the_rounds(
    tmp_path: Path, old_us: float, new_us: float, iqr_us: float, expected: int
) -> None:
    assert run_gate(tmp_path, made({"a": old_us}, iqr_us=iqr_us), made({"a": new_us}, iqr_us=iqr_us)) == expected


def test_a_busy_machine_is_no_regression(tmp_path: Path) -> None:
    old, new = made({"a": 100}), made({"a": 130})
    new["benchmarks"][0]["stats"]["min"] = old["benchmarks"][0]["stats"]["min"]  # some rounds were as fast as ever
    assert run_gate(tmp_path, old, new) == 0


def test_noise_that_would_hide_a_regression_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_gate(tmp_path, made({"a": 100}, iqr_us=30), made({"a": 100}, iqr_us=30)) == 0
    assert "1 too noisy to tell much" in capsys.readouterr().err


def test_a_benchmark_that_is_gone_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = made({"a": 100, "b": 100}), made({"a": 100})
    assert run_gate(tmp_path, old, new) == gate.EXIT_SLOWER
    assert "0 slower" in capsys.readouterr().err
    assert run_gate(tmp_path, old, new, options=("--subset",)) == 0


@pytest.mark.parametrize("change", [{"cpu": "Xeon"}, {"device": "NVIDIA H100"}])
def test_other_machines_are_refused_unless_told(tmp_path: Path, change: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = made({"a": 100}), made({"a": 500}, **change)
    assert run_gate(tmp_path, old, new) == gate.EXIT_INCOMPARABLE
    assert "--any-machine" in capsys.readouterr().err
    assert run_gate(tmp_path, old, new, options=("--any-machine",)) == gate.EXIT_SLOWER


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"machine_info": {"machine": "m", "cpu": {}}, "benchmarks": [{}]}'])
def test_files_that_are_none_are_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    assert gate.main([str(path), str(path)]) == gate.EXIT_INCOMPARABLE
    assert gate.main([str(tmp_path / "missing.json")]) == gate.EXIT_INCOMPARABLE
    assert "--benchmark-json" in capsys.readouterr().err


def test_files_with_impossible_figures_or_nothing_in_common_are_refused(tmp_path: Path) -> None:
    assert run_gate(tmp_path, made({"a": 0}), made({"a": 1})) == gate.EXIT_INCOMPARABLE
    assert run_gate(tmp_path, made({"a": 1}), made({"b": 1})) == gate.EXIT_INCOMPARABLE


def test_the_committed_baseline_of_the_machine_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    h200 = gate.read(gate.RESULTS / "baseline_h200.json")
    assert run_gate(tmp_path, h200) == 0  # with itself
    slowed = copy.deepcopy(h200)
    for figure in ("median", "min"):
        slowed["benchmarks"][0]["stats"][figure] *= 3
    assert run_gate(tmp_path, slowed) == gate.EXIT_SLOWER
    monkeypatch.setattr(gate, "RESULTS", tmp_path)
    mine = made({"a": 100}, device="CPU, 2 threads")
    assert run_gate(tmp_path, mine) == gate.EXIT_INCOMPARABLE
    assert "no baseline is of this machine" in capsys.readouterr().err
    assert run_gate(tmp_path, mine, options=("--accept", "mine")) == 0
    assert "data" not in gate.read(tmp_path / "baseline_mine.json")["benchmarks"][0]["stats"]
    assert run_gate(tmp_path, mine) == 0
