"""`gpualloc run` on this machine, with real processes that fail, stall, are killed or do not want to end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gpualloc.launch.leases import LeaseStore
from tests.launch import plans

FAULT = str(plans.ROOT / "tests/launch/scripts/fault.py")


def wait_for(is_there: Callable[[], bool], limit_s: float = 60) -> None:
    deadline_s = time.monotonic() + limit_s
    while not is_there():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def says(log: Path, text: str) -> bool:
    return log.exists() and text in log.read_text()


def log_of(folder: Path, job: str, *, attempt: int = 1, rank: int = 0) -> Path:
    return folder / "jobs" / job / f"attempt{attempt}" / f"rank{rank}.log"


def all_processes(folder: Path) -> list[psutil.Process]:
    """Those whose environment has the folder's state file, the test's own children that are over left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GPUALLOC_STATE") == str(folder / "state.sqlite") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_free(folder: Path) -> bool:
    with LeaseStore(folder / "state.sqlite", create=False) as leases:
        return leases.held() == []


def test_jobs_follow_one_another_and_start_again_after_a_fault(tmp_path: Path) -> None:
    path = plans.write(
        tmp_path,
        plans.assignment("killed", command=(FAULT, "kill", "1"), cores=(0, 1), max_restarts=1),
        plans.assignment("raising", command=("python", FAULT, "raise-always", "0"), cores=(1,), start_s=1.0),
    )
    done = plans.run(tmp_path, "run", path, "--json")
    assert done.returncode == 1, done.stderr
    jobs = {job["name"]: job for job in json.loads(done.stdout)}
    assert {name: (job["status"], job["num_attempts"]) for name, job in jobs.items()} == {
        "killed": ("complete", 2),
        "raising": ("failed", 1),
    }
    assert "killed: rank 1 was ended by SIGKILL (the kernel's out-of-memory killer sends it, too); starting it again, 1 of 1" in done.stderr
    assert "raising: failed: rank 0 exited with code 1: ValueError: no such layer in rank 0\n" in done.stderr
    assert done.stderr.index("killed: complete") < done.stderr.index("raising: started")  # they share core 1
    assert says(log_of(tmp_path, "1-killed", attempt=2, rank=1), "rank 1 of 2, kill, attempt2")
    assert is_free(tmp_path)
    assert all_processes(tmp_path) == []
    faults = {job["name"]: job["faults"] for job in json.loads(plans.run(tmp_path, "status", "--json").stdout)}
    assert [(fault["attempt"], fault["rank"]) for fault in (*faults["killed"], *faults["raising"])] == [(1, 1), (1, 0)]
    shown = plans.run(tmp_path, "status").stdout
    assert re.search(r"raising +failed .* 1 ", shown)
    told = plans.run(tmp_path, "logs", "killed", "--rank", "1", "--attempt", "1")
    assert told.stdout.startswith("rank 1 of 2, kill, attempt1\n")
    unknown = plans.run(tmp_path, "logs", "killed", "--rank", "7")
    assert (unknown.returncode, "there is: agent, rank0, rank1" in unknown.stderr) == (2, True)


def test_a_rank_that_stands_still_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STOPPED_LIMIT_S", "1")
    path = plans.write(tmp_path, plans.assignment("stalled", command=(FAULT, "stall", "1"), cores=(0, 1)))
    done = plans.run(tmp_path, "run", path)
    assert done.returncode == 1
    assert "stalled: failed: rank 1 has been stopped (SIGSTOP) for 1 s" in done.stderr
    assert all_processes(tmp_path) == []


@pytest.mark.parametrize(
    ("hang", "did"),
    [
        ("loop", "took batch 4 and did not come to step() with it"),
        pytest.param("lock", "took no batch after its batch 3", marks=pytest.mark.soak),
    ],
)
def test_a_rank_that_hangs_is_named_by_those_that_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: str, did: str) -> None:
    monkeypatch.setenv("TRAIN_HANG", hang)
    monkeypatch.setenv("TRAIN_TIMEOUT_S", "8")  # also of the ranks meeting, which takes seconds on a busy machine
    command = ("python", str(plans.ROOT / "tests/launch/scripts/train.py"), "1000")
    path = plans.write(tmp_path, plans.assignment("hanging", command=command, cores=(0, 1)))
    done = plans.run(tmp_path, "run", path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hanging: failed")]
    assert line.startswith("hanging: failed: rank 0 exited with code 1: RuntimeError: ")
    assert "imed out" in line
    assert line.endswith(f"; it waited for rank 1, which {did}")
    assert all_processes(tmp_path) == []
    assert is_free(tmp_path)


@pytest.mark.soak
def test_a_checkpoint_may_take_as_long_as_the_grace_time(tmp_path: Path) -> None:
    """torchrun itself would kill the ranks after 30 s."""
    path = plans.write(tmp_path, plans.assignment("saving", command=(FAULT, "save-for", "33")))
    process = plans.start(tmp_path, "run", path, "--grace-s", "60")
    wait_for(lambda: says(log_of(tmp_path, "1-saving"), "sleeping"))
    process.terminate()
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 143, stderr
    assert says(log_of(tmp_path, "1-saving"), "saved")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_jobs_that_do_not_want_to(tmp_path: Path, number: signal.Signals, code: int) -> None:
    path = plans.write(tmp_path, plans.assignment("deaf", command=(FAULT, "deaf"), cores=(0, 1)))
    process = plans.start(tmp_path, "run", path, "--grace-s", "0.5")
    wait_for(lambda: says(log_of(tmp_path, "1-deaf"), "sleeping") and says(log_of(tmp_path, "1-deaf", rank=1), "sleeping"))
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert f"interrupted ({number.name}): no job is left" in stderr
    assert "stopped" in stdout
    assert all_processes(tmp_path) == []
    assert is_free(tmp_path)


def test_after_a_kill_of_the_launcher_nothing_is_left_and_the_next_one_starts(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.assignment("text", command=(FAULT, "sleep"), cores=(0, 1)))
    process = plans.start(tmp_path, "run", path)
    wait_for(lambda: says(log_of(tmp_path, "1-text"), "sleeping") and says(log_of(tmp_path, "1-text", rank=1), "sleeping"))
    second = plans.run(tmp_path, "run", path, "--no-wait")
    assert second.returncode == 1
    assert re.search(r"gpualloc: error: cpu:0, cpu:1 are held by job 1 \(text\) \(process \d+, since ", second.stderr)
    held = json.loads(plans.run(tmp_path, "status", "--leases", "--json").stdout)
    assert [lease["devices"] for lease in held] == [["cpu:0", "cpu:1"]]
    process.kill()
    process.communicate()
    wait_for(lambda: all_processes(tmp_path) == [], limit_s=5)
    other = plans.write(tmp_path, plans.assignment("next", command=(FAULT, "environment"), cores=(0, 1), environment={"COLOUR": "blue"}))
    third = plans.run(tmp_path, "run", other)
    assert third.returncode == 0, third.stderr
    assert re.search(r"cleared the lease of job 1 \(text\) on cpu:0, cpu:1: process \d+ is gone", third.stderr)
    assert "cores: [0]" in log_of(tmp_path, "2-next").read_text()
    (lost,) = [job for job in json.loads(plans.run(tmp_path, "status", "--json").stdout) if job["name"] == "text"]
    assert lost["status"] == "lost"


def test_a_job_is_stopped_by_name_and_a_second_run_waits_for_its_devices(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.assignment("first", command=(FAULT, "sleep")))
    first = plans.start(tmp_path, "run", path)
    wait_for(lambda: says(log_of(tmp_path, "1-first"), "sleeping"))
    second = plans.start(tmp_path, "run", plans.write(tmp_path, plans.assignment("second", command=(FAULT, "environment"))))
    assert second.stderr is not None
    assert second.stderr.readline().startswith("second: waits: cpu:0 is held by job 1 (first)")
    stopped = plans.run(tmp_path, "stop", "first")
    assert (stopped.returncode, stopped.stdout) == (0, "first: stopped\n")
    assert first.wait(timeout=30) == 1
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 0, stderr
    for stream in (first.stdout, first.stderr):
        assert stream is not None
        stream.close()


def test_a_full_disk_ends_the_command_in_a_line_and_keeps_what_there_was(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system here")
    try:
        path = plans.write(tmp_path, plans.assignment("text", command=(FAULT, "environment")))
        assert plans.run(disk, "run", path).returncode == 0
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"x" * 1024):
                pass
        done = plans.run(disk, "run", path)
        assert done.returncode == 1
        assert re.search(r"gpualloc: error: .*(full|No space)", done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        (disk / "filler").unlink()
        first = json.loads(plans.run(disk, "status", "--json").stdout)[-1]
        assert (first["job_id"], first["status"]) == (1, "complete")
        assert all_processes(disk) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_cannot_be_meant_is_refused_before_anything_starts(tmp_path: Path) -> None:
    from gpualloc.plan.records import PlannedDevice, Waiting

    here = plans.assignment("here", command=("a.py",))
    no_script = plans.assignment("bare", command=())
    elsewhere = plans.assignment("far", command=("a.py",), devices=(PlannedDevice(node="node17", index=0),))
    gpu = plans.assignment("gpu", command=("a.py",), gpu_type="H100")
    path = plans.write(tmp_path, here, no_script, elsewhere, gpu, waiting=(Waiting(workload="late", reason="no GPU is free"),))
    for words, message in (
        (("--only", "late"), "the plan does not start 'late': it waits (no GPU is free)"),
        (("--only", "bare"), "workload 'bare' names no script to run; give it a command in the workloads file"),
        (("--only", "far"), "workload 'far' is planned for node17 and this machine is"),
        (("--only", "gpu"), "the plan has localhost GPU 0 and NVML sees no GPU here"),
        (("--only", "here", "-o", "time=1"), "the local engine has no options"),
        (("--only", "here", "--engine", "kubernetes"), "workload 'here' is planned on cores; kubernetes is for GPUs"),
    ):
        refused = plans.run(tmp_path, "run", path, *words)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "jobs").exists()


def test_a_workload_that_is_measured_first_runs_its_own_command(tmp_path: Path) -> None:
    from gpualloc.plan.records import MeasuringSlot, PlannedDevice

    slot = MeasuringSlot(
        workload="new",
        devices=(PlannedDevice(node="localhost", index=1),),
        gpu_type="cpu",
        command=("gpualloc", "results", "list", "--json"),
        start_s=0.0,
        finish_s=60.0,
        reason="nobody knows its rate",
    )
    done = plans.run(tmp_path, "run", plans.write(tmp_path, measuring=(slot,)))
    assert done.returncode == 0, done.stderr
    assert (
        plans.run(tmp_path, "logs", "new", "--agent").stdout
        == "[]\nno results yet at " + f"{tmp_path}/results.sqlite: run gpualloc bench\n"
    )
