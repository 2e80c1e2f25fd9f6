"""Who holds which device: gangs, ends of leases, other file systems, and processes that are killed at random."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gpualloc.errors import StoreError
from gpualloc.launch.jobs import JobStore
from gpualloc.launch.leases import DeviceBusyError, Lease, LeaseLostError, LeaseStore
from gpualloc.launch.local_files import file_system_type, refuse_network_file_system
from gpualloc.launch.process import identify, this_process

ROOT = Path(__file__).parents[2]
GANG = ("GPU-a", "GPU-b")
_fork = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


def take(path: Path, devices: tuple[str, ...], ttl_s: float, sender: "multiprocessing.connection.Connection") -> None:
    with LeaseStore(path) as store:
        sender.send(store.acquire(devices, holder="another", ttl_s=ttl_s))
        signal.pause()


def start_holder(
    path: Path, devices: tuple[str, ...] = GANG, *, ttl_s: float = 60.0
) -> tuple["multiprocessing.process.BaseProcess", Lease]:
    receiver, sender = _fork.Pipe()
    process = _fork.Process(target=take, args=(path, devices, ttl_s, sender))
    process.start()
    return process, receiver.recv()


def test_a_gang_is_taken_whole_or_not_at_all(path: Path) -> None:
    with LeaseStore(path) as store:
        first = store.acquire(["GPU-b"], holder="vision")
        with pytest.raises(DeviceBusyError, match=rf"GPU-b is held by vision \(process {os.getpid()}, since "):
            store.acquire(["GPU-a", "GPU-b", "GPU-c"], holder="text")
        assert [held.devices for held in store.held()] == [("GPU-b",)]
        second = store.acquire(["GPU-a", "GPU-c"], holder="text")
        store.release(first)
        third = store.acquire(["GPU-b"], holder="text")
        assert first.token < second.token < third.token


def test_the_dead_hold_nothing_and_what_they_started_is_gone(path: Path) -> None:
    holder, lease = start_holder(path)
    worker = subprocess.Popen(["sleep", "60"])
    with LeaseStore(path) as store:
        store.attach(lease, [worker.pid])
        holder.kill()
        holder.join()
        mine = store.acquire(GANG[:1], holder="me")
        assert worker.wait(timeout=5) == -signal.SIGKILL
        assert [held.token for held in store.held()] == [mine.token]
        with pytest.raises(LeaseLostError, match="not renewed for 60 s"):
            store.renew(lease)


def test_a_holder_that_hangs_loses_its_lease_with_its_processes(path: Path) -> None:
    holder, lease = start_holder(path, ttl_s=0.2)
    worker = subprocess.Popen(["sleep", "60"])
    with LeaseStore(path) as store:
        store.attach(lease, [worker.pid])
        with pytest.raises(DeviceBusyError):
            store.acquire(GANG, holder="me")
        deadline_s = time.monotonic() + 5
        while not store.held()[0].is_over:
            assert time.monotonic() < deadline_s
        assert [held.holder for held in store.clear_stale()] == ["another"]
        assert worker.wait(timeout=5) == -signal.SIGKILL
    holder.kill()
    holder.join()


def test_a_renewed_lease_holds(path: Path) -> None:
    with LeaseStore(path) as store:
        lease = store.acquire(GANG, holder="me", ttl_s=0.05)
        longer = dataclasses.replace(lease, ttl_s=60.0)
        store.renew(longer)
        assert store.held()[0].expires_in_s > 50
        assert store.clear_stale() == []


def test_no_lease_outlives_a_boot_and_a_number_used_again_is_another_process(path: Path) -> None:
    own = this_process()
    assert own.is_alive
    assert not dataclasses.replace(own, boot_id="another").is_alive
    assert not dataclasses.replace(own, start_ticks=own.start_ticks - 1).is_alive
    assert identify(2**22 + 1) is None  # above the largest number Linux gives
    with LeaseStore(path) as store:
        store.acquire(GANG, holder="me")
        held = store.held()[0]
        assert not held.is_over
        assert dataclasses.replace(held, owner=dataclasses.replace(own, boot_id="another")).is_over
        # An owner in another container cannot be seen: its lease is over when it is not renewed.
        elsewhere = dataclasses.replace(held, owner=dataclasses.replace(own, pid_namespace="pid:[1]"))
        assert not elsewhere.is_over
        assert dataclasses.replace(elsewhere, expires_in_s=-1.0).is_over


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    point = str(tmp_path / "with blank").replace(" ", "\\040")
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"31 22 0:50 / {point} rw,relatime - nfs4 server:/home rw,vers=4.2\n"
        f"32 31 0:51 / {point}/local rw - tmpfs tmpfs rw\n"
    )
    assert file_system_type(tmp_path / "state.sqlite", mounts=mounts) == "ext4"
    assert file_system_type(tmp_path / "with blank/local/state.sqlite", mounts=mounts) == "tmpfs"
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*set GPUALLOC_STATE to a file on a local disk"):
        refuse_network_file_system(tmp_path / "with blank/deep/state.sqlite", mounts=mounts)


def check_killed_holders(limit_s: float, num_kills: int, fewest_kills: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        command = [sys.executable, "-m", "tests.launch.killed_holders", name, str(limit_s), str(num_kills)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s + 60)
        assert done.returncode == 0, done.stderr
        print(done.stdout)  # for pytest -rP
        told = json.loads(done.stdout)
        assert not (folder / "errors").exists(), (folder / "errors").read_text()
        assert not (folder / "overlaps").exists(), (folder / "overlaps").read_text()
        assert told["partial"] == []
        assert told["kills"] >= fewest_kills
        assert told["leases"] >= 20  # else there was nothing to lose
        noted = [int(line) for line in (folder / "records").read_text().splitlines() if line]
        with JobStore(folder / "state.sqlite") as jobs:
            assert {job.job_id for job in jobs.jobs()} >= set(noted)


def test_holders_killed_at_random_never_overlap() -> None:
    check_killed_holders(limit_s=8, num_kills=300, fewest_kills=50)  # the fewest on a busy machine


@pytest.mark.soak
def test_holders_killed_at_random_never_overlap_for_minutes() -> None:
    check_killed_holders(limit_s=240, num_kills=10_000, fewest_kills=500)
