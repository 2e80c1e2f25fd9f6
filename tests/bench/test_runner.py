"""Real cases, seconds each: what is measured, and what is left when a case dies."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpualloc.bench.runner import run_case
from tests.bench.cases import NUM_PARAMETERS, tiny_case
from tests.store.sample_measurements import CPU_ENVIRONMENT


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no file outlives a case."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = psutil.Process().children(recursive=True)
    yield
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_single_process() -> None:
    measured = run_case(tiny_case(strategy="single", world_size=1, num_repeats=2))
    assert (measured.status, measured.reason, measured.backend) == ("ok", None, None)
    assert measured.step_time_s is not None
    assert measured.step_time_s > 0
    assert 1 <= len(measured.repeat_step_times_s) <= 8
    assert measured.wall_time_s is not None
    assert measured.wall_time_s > sum(measured.repeat_step_times_s)
    assert (measured.exposed_comm_s, measured.wire_bytes_per_step) == (0, 0)
    assert measured.peak_memory_bytes is not None
    assert 2**26 < measured.peak_memory_bytes < 2**32


@pytest.mark.parametrize(
    ("changes", "bytes_per_parameter"),
    [({"precision": "fp32"}, 4), ({"precision": "bf16", "hook": "gpualloc_fp16"}, 2)],
)
def test_two_ranks(changes: dict[str, Any], bytes_per_parameter: int) -> None:
    measured = run_case(tiny_case(**changes), environment=CPU_ENVIRONMENT)
    assert (measured.status, measured.reason, measured.backend) == ("ok", None, "gloo")
    assert measured.step_time_s is not None
    assert measured.compute_time_s is not None
    assert measured.loss_start is not None
    assert measured.loss_end is not None
    assert min(*measured.repeat_step_times_s, measured.compute_time_s) > 0
    assert measured.exposed_comm_s == max(0.0, measured.step_time_s - measured.compute_time_s)
    assert math.isfinite(measured.loss_start)
    assert math.isfinite(measured.loss_end)
    assert measured.wire_bytes_per_step == bytes_per_parameter * NUM_PARAMETERS
    assert measured.nonfinite_steps == (0 if "gpualloc" in measured.case.hook else None)
    assert measured.samples_per_s == pytest.approx(16 / measured.step_time_s)
    assert measured.environment == CPU_ENVIRONMENT


def test_a_pipeline() -> None:
    """No part of the ranks' reports is taken for granted: the first stage has no loss, and nothing can be timed without exchange."""
    measured = run_case(tiny_case(strategy="pipeline", precision="bf16"))
    assert (measured.status, measured.reason, measured.backend) == ("ok", None, "gloo")
    assert (measured.compute_time_s, measured.exposed_comm_s, measured.wire_bytes_per_step) == (None, None, None)
    assert measured.step_time_s is not None
    assert measured.samples_per_s == pytest.approx(8 / measured.step_time_s)
    assert measured.loss_start is not None
    assert math.isfinite(measured.loss_start)


def test_a_rank_that_raises_is_named_with_its_error() -> None:
    logs: list[str] = []
    measured = run_case(tiny_case(data="/no/such/folder"), show_log=logs.append)
    assert measured.status == "failed"
    assert str(measured.reason).startswith("rank ")
    assert "/no/such/folder" in str(measured.reason)
    assert "Traceback" in logs[0]


def test_out_of_memory_is_a_status_of_its_own() -> None:
    measured = run_case(tiny_case(strategy="single", world_size=1, image_size_px=1024, per_device_batch_size=2**20))
    assert measured.status == "oom"
    assert str(measured.reason).startswith("rank 0: ")


def test_a_killed_rank_ends_the_case_and_is_named() -> None:
    def kill_rank_1() -> None:
        process = rank_process(1)
        while process.cpu_times().user < 0.3:  # it is past its start, so that it ends with the parent's death too
            time.sleep(0.01)
        while len(process.net_connections()) < 2:  # connected to rank 0: a real peer is lost
            time.sleep(0.01)
        process.kill()

    killer = threading.Thread(target=kill_rank_1)
    killer.start()
    measured = run_case(tiny_case(num_steps=10**5))
    killer.join()
    assert measured.status == "failed"
    assert measured.reason == "rank 1: was ended by SIGKILL (the kernel's out-of-memory killer sends it, too)"


def rank_process(rank: int) -> psutil.Process:
    """The running process of a rank."""
    while True:
        for process in psutil.Process().children():
            arguments = process.cmdline()
            if "gpualloc.bench.worker" in arguments and arguments[4] == str(rank):
                return process
        time.sleep(0.01)


def test_the_ranks_die_with_the_command() -> None:
    """kill -9 of the process that runs the case."""
    child = os.fork()
    if child == 0:
        try:
            run_case(tiny_case(num_steps=10**5))
        finally:
            os._exit(0)
    command = psutil.Process(child)
    while len(ranks := command.children()) < 2 or min(rank.cpu_times().user for rank in ranks) < 0.3:
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    _, alive = psutil.wait_procs(ranks, timeout=5)
    for folder in Path(tempfile.gettempdir()).iterdir():  # nobody was left to remove it
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert alive == []
