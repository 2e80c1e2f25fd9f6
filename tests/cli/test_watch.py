"""`gpualloc watch` on the host of the tests, in processes of its own, and `watch report` of made samples."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gpualloc.cli.app import app
from gpualloc.watching import WatchStore
from gpualloc.watching.samples import from_json
from tests.watching.made_samples import GPU, HOST, START_UNIX_S, process, series
from tests.watching.test_store import OVERHEAD

pytestmark = pytest.mark.clock

ROOT = Path(__file__).parents[2]
ENTRY = "from gpualloc.cli.app import main; main()"
ON_HOST = ("watch", "--device", "cpu")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default watch store, in which nothing is yet."""
    monkeypatch.setenv("GPUALLOC_WATCH_STORE", str(tmp_path / "watch.sqlite"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "watch.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    """The last hour: GPU 0 works, then idles with a process of ada's; GPU 1 is low with one of bob's; their host does little."""
    shift_s = (time.time() - START_UNIX_S) // 60 * 60 - 3600  # whole minutes, as the slots are
    ada, bob = process(1, "ada"), process(2, "b[red]ob", command="python \x1b[31mtrain.py")
    samples = [
        *series((1200, 95.0), (1800, 0.0), start_s=shift_s, processes=(ada,)),
        *series((3000, 30.0), start_s=shift_s, of=GPU, device_uuid="GPU-1111", device_index=1, processes=(bob,)),
        *series((3000, 2.0), start_s=shift_s, of=HOST),
    ]
    with WatchStore(path) as store:
        store.add(store.begin_watch(host="node1", interval_s=5.0), samples, OVERHEAD)
    return path


def run(*arguments: str, exit_code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENTRY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, **options)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ENTRY, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def report(*arguments: str, exit_code: int = 0, columns: int = 120) -> Result:
    done = CliRunner().invoke(app, ["watch", "report", *arguments], env={"COLUMNS": str(columns)})
    assert done.exit_code == exit_code, done.output
    return done


def stored(path: Path) -> list[Any]:
    with WatchStore(path, create=False) as store:
        return list(store.samples())


def test_json_is_a_line_a_sample_and_the_same_as_in_the_store(path: Path) -> None:
    done = run(*ON_HOST, "--interval", "200ms", "--duration", "1s", "--json")
    samples = [from_json(json.loads(line)) for line in done.stdout.splitlines()]
    assert 3 <= len(samples) <= 6
    assert samples == stored(path)
    assert all(sample.covers_s is not None and sample.utilisation_percent is not None for sample in samples[1:])
    assert f"kept in {path}" in done.stderr
    assert "% of a core" in done.stderr


def test_the_overhead_is_recorded_and_small(path: Path) -> None:
    run(*ON_HOST, "--interval", "1s", "--duration", "3s")
    with WatchStore(path, create=False) as store:
        (watch,) = store.watches()
    assert watch.cpu_time_s is not None
    assert watch.elapsed_s is not None
    assert watch.num_samples == 4
    assert 0 < watch.cpu_time_s / watch.num_samples < 0.05  # at an interval of 5 s that is 1 % of a core


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_with_a_summary_and_nothing_lost(path: Path, number: signal.Signals) -> None:
    watching = start(*ON_HOST, "--interval", "100ms")
    assert watching.stdout is not None
    lines = [watching.stdout.readline() for _ in range(5)]
    watching.send_signal(number)
    rest, errors = watching.communicate(timeout=30)
    assert watching.returncode == 0, errors
    num_lines = sum("util " in line for line in [*lines, *rest.splitlines()] if " host " in line)
    assert num_lines == len(stored(path)) >= 5
    assert "wasted: " in rest
    assert f"{num_lines} samples kept in {path}" in errors
    assert "Traceback" not in errors


def test_sigkill_loses_no_sample_that_was_shown(path: Path) -> None:
    watching = start(*ON_HOST, "--interval", "100ms", "--json")
    assert watching.stdout is not None
    shown = [watching.stdout.readline() for _ in range(8)]
    watching.kill()
    shown += watching.stdout.readlines()
    watching.communicate()
    samples = [from_json(json.loads(line)) for line in shown if line.endswith("\n")]
    assert samples == stored(path)[: len(samples)]
    assert len(samples) >= 8


def test_it_ends_with_the_job_it_watches(path: Path) -> None:
    job = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watching = start(*ON_HOST, "--interval", "100ms", "--pid", str(job.pid), "--json")
    assert watching.stdout is not None
    first = json.loads(watching.stdout.readline())
    assert [row["pid"] for row in first["processes"]] == [job.pid]
    job.communicate(b"\n")
    rest, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0
    assert json.loads(rest.splitlines()[-1])["processes"] == []
    assert stored(path)[0].processes[0].pid == job.pid


def test_two_watches_share_a_store_and_the_report_counts_the_time_once(path: Path) -> None:
    watches = [start(*ON_HOST, "--interval", "100ms", "--duration", "2s", "--json") for _ in range(2)]
    num_lines = [len(watching.communicate(timeout=60)[0].splitlines()) for watching in watches]
    assert [watching.returncode for watching in watches] == [0, 0]
    assert len(stored(path)) == sum(num_lines)
    data = json.loads(report("--json").stdout)
    assert [watch["num_samples"] for watch in data["watches"]] in (num_lines, num_lines[::-1])
    (host,) = data["devices"]
    assert host["observed_s"] <= host["last_unix_s"] - host["first_unix_s"] + 0.01
    assert host["num_samples"] == sum(num_lines)


def test_a_full_disk_is_told_once_and_the_watching_goes_on(path: Path) -> None:
    limit = 150_000  # bytes a file may have: Linux then refuses to write as on a full disk
    done = run(
        *ON_HOST,
        *("--interval", "100ms", "--duration", "4s"),
        exit_code=1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    num_lines = sum(" host " in line for line in done.stdout.splitlines() if "util " in line)
    warnings = [line for line in done.stderr.splitlines() if "watching goes on" in line]
    assert len(warnings) == 1
    assert "free" in warnings[0]
    num_stored = len(stored(path))
    assert 0 < num_stored < num_lines
    assert f"gpualloc: error: {num_lines - num_stored} samples were not kept" in done.stderr
    assert "wasted: " in done.stdout
    assert "Traceback" not in done.stderr


def test_once_shows_a_table_and_no_store_keeps_nothing(path: Path) -> None:
    done = run(*ON_HOST, "--once", "--no-store", "--pid", str(os.getpid()))
    assert done.stdout.splitlines()[0].split()[:3] == ["device", "util", "%"]
    assert done.stdout.splitlines()[1].startswith("host ")
    assert any(line.split()[0] == str(os.getpid()) for line in done.stdout.splitlines()[2:] if line)
    assert not path.exists()
    (sample,) = [from_json(json.loads(line)) for line in run(*ON_HOST, "--once", "--json").stdout.splitlines()]
    assert sample.utilisation_percent is not None
    assert stored(path) == [sample]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--interval", "5"], "--interval '5' is no duration; write a number with its unit"),
        (["--interval", "1ms"], "choose 100ms or more"),
        (["--duration", "soon"], "--duration 'soon' is no duration"),
        (["--once", "--duration", "1s"], "--once and --duration exclude each other"),
        (["--no-store", "--store", "x"], "--store and --no-store exclude each other"),
        (["--bar", "0"], "--bar '0' is out of range; choose a percentage"),
        (["--bar", "nan"], "--bar 'nan' is out of range"),
        (["--idle-below", "50"], "--idle-below 50 is above --bar 40"),
        (["--keep-days", "0"], "--keep-days '0' is out of range"),
        (["--gpu", "0,,1"], "has an empty entry"),
        (["--pid", "4194305"], "--pid 4194305: there is no such process here"),
        (["--price-per-hour", "2.5"], "has no currency"),
        (["report", "--since", "yesterday"], "--since 'yesterday' is no duration"),
        (["report", "--price-per-hour", "0 EUR"], "choose an amount above 0"),
    ],
)
def test_what_cannot_be_meant_exits_with_2_and_keeps_nothing(path: Path, arguments: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["watch", *arguments])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("gpualloc: error: ")
    assert why in done.stderr
    assert not path.exists()


def test_without_a_driver_cuda_is_refused_and_auto_watches_the_host(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for arguments in (["--device", "cuda"], ["--gpu", "0"]):
        done = CliRunner().invoke(app, ["watch", "--once", *arguments])
        assert (done.exit_code, done.stdout) == (1, "")
        assert "gpualloc: error: pynvml is missing" in done.stderr
    done = CliRunner().invoke(app, ["watch", "--duration", "1s", "--json"])
    assert done.exit_code == 0
    assert "warning: no GPU is watched: pynvml is missing" in done.stderr


def test_the_report_names_waste_by_gpu_process_and_user(filled: Path) -> None:
    text = report("--price-per-hour", "3 EUR").stdout
    lines = {line.split("  ")[0].strip(): line for line in text.splitlines()[:4]}
    assert set(lines) == {"device", "GPU 0", "GPU 1", "host"}
    assert "30m" in lines["GPU 0"]
    assert "0.50" in lines["GPU 0"]
    assert "1.50" in lines["GPU 0"]
    assert "0.58" in lines["GPU 1"]  # 50 minutes at 30 %
    assert "wasted: 1.08 of 1.67 GPU-hours (65%), 3.25 EUR" in text
    assert "b[red]ob" in text
    assert "\x1b" not in text
    assert "idle: below 5 % for 10m or longer; low: below 40 %" in text


def test_the_report_as_json(filled: Path) -> None:
    data = json.loads(report("--json", "--price-per-hour", "3 EUR").stdout)
    assert data["wasted_device_hours"] == pytest.approx(0.5 + 50 / 60 * 0.7, abs=1e-6)
    assert data["cost"] == pytest.approx(3 * data["wasted_device_hours"])
    assert data["price"] == {"amount_per_hour": 3.0, "currency": "EUR"}
    assert [(row["user"], round(row["wasted_device_hours"], 3)) for row in data["by_user"]] == [("b[red]ob", 0.583), ("ada", 0.5)]
    assert {row["device_uuid"]: [span["kind"] for span in row["spans"]] for row in data["devices"]} == {
        "GPU-0000": ["idle"],
        "GPU-1111": ["low"],
        "host-node1": [],
    }
    assert data["devices"][0]["spans"][0]["start_utc"].endswith("+00:00")
    assert json.loads(report("--json").stdout)["cost"] is None


def test_options_before_report_hold_for_it(filled: Path) -> None:
    done = CliRunner().invoke(app, ["watch", "--json", "--bar", "20", "report"])
    assert json.loads(done.stdout)["rule"]["bar_percent"] == 20.0
    assert done.stdout.replace("20.0", "40.0", 1) != report("--json").stdout


@pytest.mark.parametrize("columns", [40, 60, 100, 160])
def test_the_report_fits_and_keeps_what_matters(filled: Path, columns: int) -> None:
    text = report("--price-per-hour", "3 EUR", columns=columns).stdout
    assert max(map(len, text.splitlines())) <= columns
    for header in ("device", "util %", "wasted h"):
        assert header in text.splitlines()[0]
    assert ("NVIDIA H100" in text) == (columns >= 100)


def test_without_samples_the_report_says_what_to_do(path: Path) -> None:
    assert f"nothing was watched yet at {path}: run gpualloc watch" in report(exit_code=1).stderr
    with WatchStore(path) as store:
        store.add(store.begin_watch(host="node1", interval_s=5.0), [GPU], OVERHEAD)
    time.sleep(1.1)
    done = report("--since", "1s", exit_code=1)
    assert done.stdout == ""
    assert "the newest is of 2026-11-26T00:00:00+00:00; look further back with --since" in done.stderr


def test_a_damaged_sample_is_told_on_stderr(filled: Path) -> None:
    with WatchStore(filled) as store:
        store._connection.execute("UPDATE samples SET power_w = 'much' WHERE sample_id = 7")
    assert f"warning: 1 damaged samples in {filled} are left out" in report().stderr


def test_piped_lines_have_no_colour_codes_whatever_the_terminal(path: Path) -> None:
    done = run(*ON_HOST, "--interval", "100ms", "--duration", "300ms", env={**os.environ, "FORCE_COLOR": "", "NO_COLOR": "1"})
    assert "\x1b" not in done.stdout + done.stderr


def test_a_terminal_shows_one_table_that_is_drawn_anew(path: Path) -> None:
    terminal, inner = os.openpty()
    command = [sys.executable, "-c", ENTRY, *ON_HOST, "--interval", "200ms", "--duration", "1s", "--pid", str(os.getpid())]
    watching = subprocess.Popen(
        command, stdout=inner, stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "TERM": "xterm", "COLUMNS": "60"}
    )
    os.close(inner)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    assert watching.stderr is not None
    errors = watching.stderr.read()
    watching.stderr.close()
    assert watching.wait(timeout=30) == 0, errors
    text = shown.decode()
    assert "\x1b[1A" in text  # back up to draw over
    assert text.count("Ctrl-C ends") >= 3
    assert "wasted: " in text
    assert str(os.getpid()) in text


def test_a_closed_pipe_is_no_traceback(path: Path) -> None:
    watching = start(*ON_HOST, "--interval", "100ms", "--json")
    assert watching.stdout is not None
    watching.stdout.readline()
    watching.stdout.close()
    assert watching.wait(timeout=30) == 1
    assert watching.stderr is not None
    assert "Traceback" not in watching.stderr.read()
    watching.stderr.close()
    assert len(stored(path)) >= 1
