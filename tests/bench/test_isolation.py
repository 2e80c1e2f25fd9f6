"""Who else is there: a real neighbour on this machine's cores, and on GPUs what NVML would say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
import torch

from gpualloc.bench import isolation, nvml
from gpualloc.bench.isolation import RankWatch
from gpualloc.bench.nvml import DeviceState

pytestmark = pytest.mark.clock

BUSY = "import os; os.sched_setaffinity(0, {CORE}); print(flush=True)\nwhile True: pass"
HEALTHY = DeviceState(
    index=0, pids=(), slowdowns=(), is_power_capped=False, power_limit_w=700.0, default_power_limit_w=700.0, uncorrected_ecc_errors=0
)


@pytest.fixture
def neighbour() -> Iterator[int]:
    """The number of a process that keeps one of this process's cores busy; this process is pinned to it, too."""
    cores = os.sched_getaffinity(0)
    core = min(cores)
    process = subprocess.Popen([sys.executable, "-c", BUSY.replace("CORE", str(core))], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.sched_setaffinity(0, {core})
    yield process.pid
    os.sched_setaffinity(0, cores)
    process.kill()
    process.communicate()


def work(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def test_a_neighbour_on_the_same_core_is_seen_around_a_repeat(neighbour: int) -> None:
    watch = RankWatch(gpu_uuid=None, ranks_per_gpu=1, num_ranks=1)
    watch.start()
    work(0.6)
    [reason] = watch.stop()
    assert reason.startswith("other processes took ")
    assert watch.notes() == []


def test_a_neighbour_is_named_before_a_case(neighbour: int) -> None:
    reason = isolation.why_busy("cpu")
    assert reason is not None
    assert "most of it process " in reason


def test_ones_own_work_is_no_disturbance() -> None:
    before = isolation._CpuTime(time_s=0.0, cores_s=100.0, own_s=10.0)
    assert isolation._foreign_share(before, isolation._CpuTime(time_s=1.0, cores_s=102.0, own_s=11.95), 2) is None
    assert isolation._foreign_share(before, isolation._CpuTime(time_s=1.0, cores_s=102.0, own_s=11.0), 2) == pytest.approx(0.5)
    tick = isolation._CpuTime(time_s=0.05, cores_s=100.04, own_s=10.0)
    assert isolation._foreign_share(before, tick, 1) is None  # four ticks say nothing


def test_ranks_that_share_their_cores_are_not_watched(neighbour: int) -> None:
    os.sched_setaffinity(0, psutil.Process(os.getppid()).cpu_affinity() or {0})
    watch = RankWatch(gpu_uuid=None, ranks_per_gpu=1, num_ranks=2)
    watch.start()
    work(0.2)
    assert watch.stop() == []


@pytest.mark.parametrize(
    ("pids", "own", "ranks_per_gpu", "strangers"),
    [
        ((7,), (7,), 1, 0),
        ((7, 8), (7,), 1, 1),
        ((70,), (7,), 1, 0),  # a container: the one process there is ours
        ((70, 80), (7,), 1, 1),
        ((70, 80, 90), (7, 8), 2, 0),  # two ranks and the MPS server
        ((70, 80, 90, 91), (7, 8), 2, 1),
        ((), (7,), 1, 0),
    ],
)
def test_the_cases_own_processes_do_not_count(pids: tuple[int, ...], own: tuple[int, ...], ranks_per_gpu: int, strangers: int) -> None:
    assert isolation._count_strangers(pids, own, ranks_per_gpu) == strangers


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"is_power_capped": True}, []),  # usual under full load
        ({"slowdowns": ("power brake",)}, ["GPU 0: power brake"]),
        ({"uncorrected_ecc_errors": 2}, ["GPU 0: uncorrected memory errors"]),
        ({"pids": (2**22 + 1, 2**22 + 2)}, ["1 other process used GPU 0"]),
    ],
)
def test_what_disturbs_on_a_gpu(changes: dict[str, object], reasons: list[str]) -> None:
    after = DeviceState(**{**vars(HEALTHY), **changes})
    assert isolation._gpu_disturbances(HEALTHY, after, own_pids=(), ranks_per_gpu=1) == reasons


@pytest.mark.gpu
def test_the_state_of_a_real_gpu() -> None:
    [state, *_] = nvml.read_states()
    assert nvml.read_state(str(torch.cuda.get_device_properties(0).uuid)) is not None
    assert state.power_limit_w is not None
    assert 0 < state.power_limit_w < 2000


@pytest.mark.gpu
def test_a_foreign_process_on_a_real_gpu_is_seen_and_ones_own_is_not() -> None:
    torch.zeros(1, device="cuda")
    watch = RankWatch(gpu_uuid=str(torch.cuda.get_device_properties(0).uuid), ranks_per_gpu=1, num_ranks=1)
    watch._own_pids.add(os.getpid())
    watch.start()
    assert watch.stop() == []
    code = "import torch; torch.zeros(1, device='cuda'); torch.cuda.synchronize(); print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        watch.start()
        [reason] = watch.stop()
        assert reason.startswith("1 other process used GPU ")
        assert isolation.why_busy("cuda") is not None
    finally:
        other.communicate(b"\n")
