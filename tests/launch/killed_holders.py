"""Processes that take and give back gangs of devices while they are killed at random: `python killed_holders.py FOLDER SECONDS KILLS`.

Whether two hold one device is seen apart from what is tested: who works on a device locks a file of it, which the kernel unlocks when the
last process that has it open is dead. Half of the gangs have a child that works on, with the file open, after its parent is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from gpualloc.launch.jobs import JobStore
from gpualloc.launch.leases import DeviceBusyError, Lease, LeaseStore

DEVICES = [f"cpu:{index}" for index in range(6)]
NUM_HOLDERS = 6


def hold_for_ever(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    with LeaseStore(folder / "state.sqlite") as leases, JobStore(folder / "state.sqlite") as jobs:
        while True:
            gang = draw.sample(DEVICES, draw.randint(1, 4))
            try:
                lease = leases.acquire(gang, holder=f"holder {seed}")
            except DeviceBusyError:
                continue
            child, ready = None, None
            if draw.random() < 0.5:
                child, ready = start_worker(folder, leases, lease)
            else:
                files = lock(folder, gang)
            note(folder / "records", str(jobs.add(name=f"gang-{lease.token}", engine="local", folder=folder, assignment={})))
            if child is not None and ready is not None:
                ready.close()
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            else:
                for file in files:
                    file.close()
            leases.release(lease)


def lock(folder: Path, gang: Iterable[str]) -> list[IO[str]]:
    files = [(folder / device).open("a") for device in gang]
    for file in files:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(folder / "overlaps", file.name)
    return files


def start_worker(folder: Path, leases: LeaseStore, lease: Lease) -> tuple[int, IO[bytes]]:
    """A child that works on the devices once it is attached to the lease, and outlives its parent."""
    told, go = os.pipe()
    working, done = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        if os.read(told, 1):  # else the parent died before it could attach it
            files = lock(folder, lease.devices)
            os.write(done, b"!")
            time.sleep(60)
            del files
        os._exit(0)
    os.close(told)
    os.close(done)
    leases.attach(lease, [child])
    os.write(go, b"!")
    os.close(go)
    ready = os.fdopen(working, "rb")
    ready.read(1)
    return child, ready


def note(path: Path, line: str) -> None:
    with path.open("a") as file:  # one write of a line: whole or not there
        file.write(line + "\n")


def start_holder(folder: Path, seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            hold_for_ever(folder, seed)
        except BaseException as error:
            note(folder / "errors", repr(error))
        os._exit(1)
    return pid


def main(folder: Path, limit_s: float, num_kills: int) -> None:
    draw = random.Random(0)
    started_s, done = time.monotonic(), 0
    holders = [start_holder(folder, seed) for seed in range(NUM_HOLDERS)]
    while done < num_kills and time.monotonic() < started_s + limit_s:
        time.sleep(draw.expovariate(1 / 0.02))
        victim = draw.randrange(NUM_HOLDERS)
        os.kill(holders[victim], signal.SIGKILL)
        os.waitpid(holders[victim], 0)
        done += 1
        holders[victim] = start_holder(folder, NUM_HOLDERS + done)
    for pid in holders:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with LeaseStore(folder / "state.sqlite") as leases:
        partial = [held.token for held in leases.held() if len(held.devices) != held.num_devices]
        newest = leases.acquire(DEVICES, holder="the end")  # clears what the dead have left
        leases.release(newest)
    print(json.dumps({"kills": done, "leases": newest.token, "partial": partial}))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
