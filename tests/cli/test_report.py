"""`gpualloc report`: files in, a page out; what cannot be read is refused by name."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gpualloc.cli.app import app
from gpualloc.profiling.records import profile_to_json
from gpualloc.watching import WatchStore
from gpualloc.watching.sampler import Overhead
from tests.report.inputs import made_profile
from tests.report.later import ADVICE, FORECAST, PLAN, REHEARSAL, SIMULATION, TIMELINE
from tests.watching.made_samples import series

runner = CliRunner()


def report(*arguments: object) -> Result:
    return runner.invoke(app, ["report", *map(str, arguments)])


@pytest.mark.usefixtures("filled")
def test_a_page_of_the_latest_run_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = report("-o", page, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["path"], data["runs"], data["num_measurements"]) == (str(page), ["3"], 7)
    assert data["num_bytes"] == page.stat().st_size
    assert "NVIDIA H200" in page.read_text()
    assert list(tmp_path.glob(".*unfinished")) == []


@pytest.mark.usefixtures("filled")
def test_language_and_stdout() -> None:
    assert '<html lang="ja">' in report("1", "--lang", "ja", "-o", "-").stdout
    assert '<html lang="en">' in report("1", "-o", "-").stdout


@pytest.mark.usefixtures("filled")
def test_all_runs_and_an_exported_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = tmp_path / "run.json"
    assert runner.invoke(app, ["results", "export", "1", "-o", str(exported)]).exit_code == 0
    page = tmp_path / "page.html"
    assert json.loads(report("all", "-o", page, "--json").stdout)["runs"] == ["1", "3", "2"]
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "nowhere.sqlite"))
    assert json.loads(report(exported, "-o", page, "--json").stdout) | {"path": ""} == {
        "path": "",
        "num_bytes": page.stat().st_size,
        "runs": ["run.json"],
        "num_measurements": 11,
    }


@pytest.mark.usefixtures("filled")
def test_everything_else_that_is_shown(tmp_path: Path) -> None:
    contents = {"profile": profile_to_json(made_profile()), "rehearsal": REHEARSAL, "plan": PLAN}
    contents |= {"advice": ADVICE, "forecast": FORECAST, "simulation": SIMULATION, "timeline": TIMELINE}
    options = []
    for name, data in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
        options += [f"--{name}", tmp_path / f"{name}.json"]
    with WatchStore(tmp_path / "watch.sqlite") as store:
        store.add(
            store.begin_watch(host="node1", interval_s=5.0),
            series((600.0, 80.0)),
            Overhead(cpu_time_s=1.0, elapsed_s=600.0, rss_bytes=2**20),
        )
    result = report("1", *options, "--watch", tmp_path / "watch.sqlite", "-o", "-")
    assert result.exit_code == 0, result.stderr
    for key in ("profile", "rehearsal", "plan", "advice", "forecast", "simulation", "utilisation"):
        assert f'<section id="{key}"' in result.stdout


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("arguments", "content", "part"),
    [
        (["9"], None, "no run 9 in"),
        (["last"], None, "RUN is 'last'; give a number"),
        (["absent.json"], None, "RUN absent.json cannot be read: No such file"),
        (["FILE"], "{}", "is no exported run: KeyError('measurements')"),
        (["FILE"], "[1", "is not JSON"),
        (["--plan", "FILE"], {**PLAN, "schema_version": 3}, "schema_version: Input should be 1 or 2"),
        (["--plan", "FILE"], "[]", "write it again with: gpualloc plan"),
        (["--rehearsal", "FILE"], {**REHEARSAL, "scaling": "odd"}, "scaling: Input should be 'weak' or 'strong'"),
        (["--profile", "FILE"], {"schema_version": 1, "ranks": []}, "is no profile"),
        (["--profile", "FILE"], {"schema_version": 9}, "has schema 9, this gpualloc reads 1"),
        (["--profile", "EMPTY"], None, "holds no profile"),
        (["--watch", "FILE"], "no store", "cannot be used"),
        (["--quality", "FILE"], "{}", "cannot be read"),
        (["--price-per-hour", "cheap"], None, "--price-per-hour 'cheap' is no price"),
        (["--min-efficiency", "1.2"], None, "--min-efficiency 1.2 is out of range"),
        (["--port", "70000", "--serve"], None, "--port 70000 is out of range"),
        (["--serve", "-o", "x.html"], None, "leave out --output or --serve"),
        (["-o", "absent/x.html"], None, "cannot be written"),
        (["-o", "-", "--json"], None, "both write to stdout"),
    ],
)
def test_what_cannot_be_meant_is_named(
    arguments: list[str], content: Any, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "given.json"
    (tmp_path / "empty").mkdir()
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    result = report(*(str(file) if word == "FILE" else "empty" if word == "EMPTY" else word for word in arguments))
    assert result.exit_code in (1, 2), result.output
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "report.html").exists()


def test_without_a_store_the_command_that_fills_it_is_named(store_path: Path) -> None:
    result = report()
    assert result.exit_code == 1
    assert "run gpualloc bench" in result.stderr


@pytest.mark.usefixtures("filled")
def test_serving_ends_with_ctrl_c_at_once() -> None:
    command = [sys.executable, "-c", "from gpualloc.cli.app import main; main()", "report", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        host, _, path = address.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("GET", f"/{path}")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("ended")
