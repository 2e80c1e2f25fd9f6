"""The supervision of ranks, with processes that stand in for them and need no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpualloc.bench import ranks
from gpualloc.errors import CaseFailedError

RANK_1_ONLY = "import os, sys, time\nif sys.argv[2] == '1': {}\ntime.sleep(60)"


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    before = psutil.Process().children(recursive=True)
    yield
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, program: str, *, timeout_s: float = 20.0, stop_rank: int | None = None
) -> CaseFailedError:
    """The failure that two processes running `program` come to."""
    monkeypatch.setattr(ranks, "_BOOTSTRAP", program)
    with ranks.started_ranks(folder, [dict(os.environ)] * 2) as processes:
        if stop_rank is not None:
            os.kill(processes[stop_rank].pid, signal.SIGSTOP)
        with pytest.raises(CaseFailedError) as caught:
            ranks.wait_for_reports(folder, processes, timeout_s=timeout_s)
    return caught.value


def test_an_exit_code_is_told_with_the_last_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = run(monkeypatch, tmp_path, RANK_1_ONLY.format("print('no space left'); sys.exit(3)"))
    assert str(error) == "rank 1: exited with code 3: no space left"
    assert error.rank == 1


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_the_signal_that_ended_a_rank_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    error = run(monkeypatch, tmp_path, RANK_1_ONLY.format(f"os.kill(os.getpid(), {int(signal.Signals[name])})"))
    assert str(error).startswith(f"rank 1: was ended by {name}")


def test_a_timeout_names_the_ranks_and_their_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ranks, "_STOPPED_LIMIT_S", 60.0)
    error = run(monkeypatch, tmp_path, "import time; time.sleep(60)", timeout_s=0.5)
    assert error.kind == "timeout"
    assert "not finished after 0.5 s: rank 0 (sleeping), rank 1 (sleeping)" in str(error)


def test_a_stopped_rank_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ranks, "_STOPPED_LIMIT_S", 0.5)
    error = run(monkeypatch, tmp_path, "import time; time.sleep(60)", stop_rank=1)
    assert str(error).startswith("rank 1 has been stopped (SIGSTOP) for")
    assert (error.rank, error.kind) == (1, "timeout")


def test_a_rank_that_ignores_sigterm_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ranks, "_TERM_TO_KILL_S", 0.3)
    stubborn = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); subprocess.Popen(['sleep', '60']); time.sleep(60)"
    )
    started_s = time.monotonic()
    run(monkeypatch, tmp_path, stubborn, timeout_s=1.0)
    assert time.monotonic() - started_s < 10
