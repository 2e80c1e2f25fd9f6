"""Real processes of this machine, and how they are named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from gpualloc.errors import UsageError
from gpualloc.watching.host import UNKNOWN_PROCESS, HostReader, ProcessReader, WatchedJobs, short_command

pytestmark = pytest.mark.clock

BUSY = "while True: pass"


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes a core, or what it gets of one."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, "--token=secret"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("words", "short"),
    [
        (["/usr/bin/python3", "-u", "/home/ada/train.py", "--token=s3cret"], "python3 train.py"),
        (["python", "-m", "torch.distributed.run", "--nproc=8", "train.py"], "python -m torch.distributed.run"),
        (["python", "-c", "import secrets"], "python -c"),
        (["/opt/conda/bin/python", "/usr/bin/torchrun", "--nproc=2", "/a/b/finetune.py"], "python finetune.py"),
        (["/usr/local/bin/server", "--password", "hunter2"], "server"),
        (["python"], "python"),
        (["python", "-m"], "python -m"),
        (["x\x1b[31m\n" * 40], None),
        ([], ""),
    ],
)
def test_a_command_is_its_program_and_script_alone(words: list[str], short: str | None) -> None:
    found = short_command(words)
    assert found.isprintable()
    assert len(found) <= 80
    assert short in (None, found)


def test_a_busy_process_is_read(busy: subprocess.Popen[bytes]) -> None:
    reader = ProcessReader()
    first = reader.read(busy.pid, is_drivers_number=False)
    reader.end_look([busy.pid])
    time.sleep(0.5)
    second = reader.read(busy.pid, is_drivers_number=False)
    assert first.cpu_percent is None  # of no time yet
    assert second.cpu_percent is not None
    assert 10 < second.cpu_percent < 150
    assert second.user == psutil.Process().username()
    assert second.command is not None
    assert second.command.endswith("-c")
    assert "secret" not in second.command
    assert second.started_unix_s == pytest.approx(time.time(), abs=30)
    assert second.rss_bytes is not None
    assert 10**6 < second.rss_bytes < 10**9


def test_read_twice_in_one_look_a_process_took_its_cpu_time_once(busy: subprocess.Popen[bytes]) -> None:
    reader = ProcessReader()
    reader.read(busy.pid, is_drivers_number=False)
    reader.end_look([busy.pid])
    time.sleep(0.5)
    seen = reader.read(busy.pid, is_drivers_number=False)
    assert seen.cpu_percent is not None
    assert seen.cpu_percent > 10
    assert reader.read(busy.pid, is_drivers_number=False) == seen  # it is on a second GPU


def test_a_process_that_ended_is_unknown(busy: subprocess.Popen[bytes]) -> None:
    reader = ProcessReader()
    assert reader.read(busy.pid, is_drivers_number=False) != UNKNOWN_PROCESS
    busy.kill()
    busy.wait()
    assert reader.read(busy.pid, is_drivers_number=False) == UNKNOWN_PROCESS


def test_in_a_container_a_number_of_the_driver_names_nobody_without_a_gpu(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ProcessReader()
    monkeypatch.setattr(reader, "_is_first_namespace", False)
    assert reader.read(busy.pid, is_drivers_number=True) == UNKNOWN_PROCESS
    assert reader.read(busy.pid, is_drivers_number=False) != UNKNOWN_PROCESS
    monkeypatch.setattr(reader, "_is_first_namespace", True)
    assert reader.read(busy.pid, is_drivers_number=True) != UNKNOWN_PROCESS


def test_host_utilisation_follows_the_load(busy: subprocess.Popen[bytes]) -> None:
    reader = HostReader()
    assert reader.read_utilisation_percent() is None
    time.sleep(0.5)
    percent = reader.read_utilisation_percent()
    assert percent is not None
    assert 50 / (os.cpu_count() or 1) < percent <= 100
    used, total = reader.read_memory_bytes()
    assert 0 < used < total == psutil.virtual_memory().total


def test_a_job_is_all_that_it_starts_and_goes_on_after_its_first_process() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=s.DEVNULL).pid, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())
    jobs = WatchedJobs([parent.pid])
    try:
        assert jobs.pids() == sorted([parent.pid, child_pid])
        parent.communicate("end\n")
        assert jobs.pids() == [child_pid]
    finally:
        psutil.Process(child_pid).kill()
    deadline_s = time.monotonic() + 10
    while jobs.pids() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert jobs.pids() == []


@pytest.mark.parametrize("pid", [-1, 2**22 + 1, 2**70])
def test_a_pid_that_is_nobody_is_refused(pid: int) -> None:
    with pytest.raises(UsageError, match=f"--pid {pid}: there is no such process"):
        WatchedJobs([pid])
