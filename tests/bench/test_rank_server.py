"""Ranks forked by a server: supervised as new interpreters are, with environments of their own, and none left whatever ends first."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpualloc.bench import rank_files
from gpualloc.bench.rank_server import RankServer
from gpualloc.bench.ranks import started_ranks, wait_for_ranks
from gpualloc.errors import CaseFailedError

WORKER = "tests.bench.standin_worker"


@pytest.fixture
def server() -> Iterator[RankServer]:
    before = psutil.Process().children(recursive=True)
    with RankServer(imported=()) as server:
        yield server
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []


def run(server: RankServer, folder: Path, *what: str, timeout_s: float = 20.0) -> None:
    """As many ranks as things to do."""
    environments = [{**os.environ, "STANDIN": word, "OWN": str(rank)} for rank, word in enumerate(what)]
    with started_ranks(folder, environments, worker=WORKER, server=server) as processes:
        wait_for_ranks(folder, processes, timeout_s=timeout_s)


def test_ranks_have_environments_and_process_groups_of_their_own(server: RankServer, tmp_path: Path) -> None:
    run(server, tmp_path, "", "")
    for rank in range(2):
        assert (tmp_path / f"rank{rank}.seen").read_text() == f"{rank} True ''"


def test_an_exit_code_is_told_with_the_last_output(server: RankServer, tmp_path: Path) -> None:
    with pytest.raises(CaseFailedError, match=r"^rank 1: exited with code 3: no space left$"):
        run(server, tmp_path, "wait", "fail")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_the_signal_that_ended_a_rank_is_named(server: RankServer, tmp_path: Path, name: str) -> None:
    with pytest.raises(CaseFailedError, match=f"^rank 1: was ended by {name}"):
        run(server, tmp_path, "wait", f"signal {int(signal.Signals[name])}")


def waiting_ranks(server: RankServer) -> list[psutil.Process]:
    """The server, its two ranks that wait, and their children, once all are there."""
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        if server._process is not None:
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(server._process.pid)
                found = [parent, *parent.children(recursive=True)]
                if [process.name() for process in found].count("sleep") == 2:
                    return found
        time.sleep(0.02)
    return []


def test_ranks_out_of_time_are_ended_with_their_children(server: RankServer, tmp_path: Path) -> None:
    found: list[psutil.Process] = []
    looking = threading.Thread(target=lambda: found.extend(waiting_ranks(server)))
    looking.start()
    with pytest.raises(CaseFailedError, match="not finished after 5 s"):
        run(server, tmp_path, "wait", "wait", timeout_s=5)
    looking.join()
    assert len(found) == 5
    assert psutil.wait_procs(found, timeout=5)[1] == found[:1]  # the server


def test_after_a_server_that_was_killed_comes_another(server: RankServer, tmp_path: Path) -> None:
    killing = threading.Thread(target=lambda: [process.kill() for process in waiting_ranks(server)[:1]])
    killing.start()
    with pytest.raises(CaseFailedError, match="rank 0: was ended by SIGKILL"):
        run(server, tmp_path, "wait", "wait", timeout_s=60)
    killing.join()
    (tmp_path / "next").mkdir()
    run(server, tmp_path / "next", "", "")


def test_an_answer_that_nobody_took_is_not_the_next_ones(server: RankServer, tmp_path: Path) -> None:
    run(server, tmp_path, "")
    assert server._process is not None
    assert server._process.stdin is not None
    request = {"worker": WORKER, "folder": str(tmp_path), "rank": 7, "environment": {}}
    server._process.stdin.write(json.dumps([0, request]) + "\n")  # and then Ctrl-C
    (tmp_path / "next").mkdir()
    run(server, tmp_path / "next", "", "")
    assert [rank_files.has_report(tmp_path / "next", rank) for rank in range(2)] == [True, True]
    assert (tmp_path / "rank7.seen").read_text() == "None True ''"  # not the requests after its own


def test_server_and_ranks_end_with_the_command(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            with RankServer(imported=()) as server:
                run(server, tmp_path, "wait", "wait")
        finally:
            os._exit(0)
    command = psutil.Process(child)
    names: list[str] = []
    while names.count("sleep") < 2:
        started = command.children(recursive=True)
        names = [process.name() for process in started]
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    _, alive = psutil.wait_procs([process for process, name in zip(started, names, strict=True) if name != "sleep"], timeout=5)
    for process, name in zip(started, names, strict=True):
        if name == "sleep":  # the rank's, which ends with nobody
            process.kill()
    assert alive == []


def test_what_the_server_imports_asks_for_no_gpu() -> None:
    """A fork of a process that asked CUDA for its devices cannot use them."""
    program = (
        "import torch\n"
        "def asked(*_): raise SystemExit('asked for a GPU')\n"
        "for name in ('is_available', 'device_count', '_lazy_init', 'current_device'): setattr(torch.cuda, name, asked)\n"
        "if torch.version.cuda is not None: torch._C._cuda_getDeviceCount = torch._C._cuda_init = asked\n"
        "import gpualloc.bench.measure, torch._dynamo\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
