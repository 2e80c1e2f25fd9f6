"""Whether the device is a case's own: looked at before it starts, and by every rank around each timed repeat.

On a GPU that is: another process with a CUDA context there, clocks held back by heat or by the hardware, memory errors. On a CPU it
is what others take of the cores that a rank is pinned to. A GPU at its power limit is noted, not blamed: under load that is usual.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Collection
from dataclasses import dataclass

import psutil

from gpualloc.bench import nvml
from gpualloc.bench.nvml import DeviceState

_MAX_FOREIGN_SHARE = 0.1  # of the cores' time
_MIN_FOREIGN_S = 0.05  # the kernel counts a core's time in ticks of 10 ms
_LOOK_S = 0.2
_MPS_SERVER = "nvidia-cuda-mps-server"


@dataclass(frozen=True)
class _CpuTime:
    time_s: float
    cores_s: float  # busy, or taken by the hypervisor
    own_s: float


class RankWatch:
    """What a rank sees of its device from `start` to `stop`."""

    def __init__(self, *, gpu_uuid: str | None, ranks_per_gpu: int, num_ranks: int) -> None:
        """Args: gpu_uuid: as torch writes it; None on a CPU."""
        self._gpu_uuid = gpu_uuid
        self._ranks_per_gpu = ranks_per_gpu
        self._cores = sorted(os.sched_getaffinity(0))
        command = psutil.Process(os.getppid())
        # Ranks that share their cores, as where there are too few of them, would take each other for strangers.
        self._has_own_cores = num_ranks == 1 or set(self._cores) < set(command.cpu_affinity())
        self._own_pids = {command.pid, *(process.pid for process in command.children(recursive=True))} if gpu_uuid else set()
        self._cpu_before: _CpuTime | None = None
        self._gpu_before: DeviceState | None = None
        self._was_power_capped = False

    def start(self) -> None:
        if self._gpu_uuid is not None:
            self._gpu_before = nvml.read_state(self._gpu_uuid)
        elif self._has_own_cores:
            self._cpu_before = _read_cpu_time(self._cores)

    def stop(self) -> list[str]:
        """What disturbed the time since `start`, a clause each."""
        if self._gpu_uuid is not None:
            now = nvml.read_state(self._gpu_uuid)
            if now is None or self._gpu_before is None:
                return []
            self._was_power_capped |= now.is_power_capped
            return _gpu_disturbances(self._gpu_before, now, own_pids=self._own_pids, ranks_per_gpu=self._ranks_per_gpu)
        if self._cpu_before is None:
            return []
        foreign = _foreign_share(self._cpu_before, _read_cpu_time(self._cores), len(self._cores))
        return [] if foreign is None else [f"other processes took {foreign:.0%} of the cores"]

    def notes(self) -> list[str]:
        """What holds for the device all the time and should be known, a clause each."""
        state = self._gpu_before
        if state is None or state.power_limit_w is None:
            return []
        limit = f"{state.power_limit_w:.0f} W"
        notes = [f"the clocks were those that the power limit of {limit} allows"] if self._was_power_capped else []
        if state.default_power_limit_w is not None and state.power_limit_w < state.default_power_limit_w:
            notes.append(f"the power limit is {limit}, below the default of {state.default_power_limit_w:.0f} W")
        return notes


def why_busy(device: str) -> str | None:
    """Who else uses the device now, when nothing of ours does; None where nobody is seen."""
    if device == "cuda":
        for state in nvml.read_states():
            strangers = [pid for pid in state.pids if _process_name(pid) != _MPS_SERVER]
            if strangers:
                # No names: in a container these are numbers of the host.
                return f"GPU {state.index} is in use by process {', '.join(map(str, strangers))}"
            if state.slowdowns:
                return f"GPU {state.index} is held back: {', '.join(state.slowdowns)}"
        return None
    cores = sorted(os.sched_getaffinity(0))
    processes = {process: _own_cpu_s(process) for process in psutil.process_iter()}
    before = _read_cpu_time(cores)
    time.sleep(_LOOK_S)
    foreign = _foreign_share(before, _read_cpu_time(cores), len(cores))
    if foreign is None:
        return None
    busiest = max(processes, key=lambda process: _own_cpu_s(process) - processes[process])
    return f"other processes take {foreign:.0%} of the cores, most of it process {busiest.pid} ({_process_name(busiest.pid)})"


def _gpu_disturbances(before: DeviceState, after: DeviceState, *, own_pids: Collection[int], ranks_per_gpu: int) -> list[str]:
    found = []
    num_strangers = _count_strangers(after.pids, own_pids, ranks_per_gpu)
    if num_strangers:
        found.append(f"{num_strangers} other process{'es' if num_strangers > 1 else ''} used GPU {after.index}")
    found += [f"GPU {after.index}: {reason}" for reason in after.slowdowns]
    if (after.uncorrected_ecc_errors or 0) > (before.uncorrected_ecc_errors or 0):
        found.append(f"GPU {after.index}: uncorrected memory errors")
    return found


def _count_strangers(pids: Collection[int], own_pids: Collection[int], ranks_per_gpu: int) -> int:
    """Where none of our numbers is among them, NVML counts in another namespace than a container: then only how many there are helps."""
    if any(pid in own_pids for pid in pids):
        return sum(pid not in own_pids and _process_name(pid) != _MPS_SERVER for pid in pids)
    num_servers = 1 if ranks_per_gpu > 1 else 0
    return max(0, len(pids) - ranks_per_gpu - num_servers)


def _read_cpu_time(cores: Collection[int]) -> _CpuTime:
    per_core = psutil.cpu_times(percpu=True)
    own = [psutil.Process(), *(psutil.Process(child.pid) for child in multiprocessing.active_children() if child.pid)]
    return _CpuTime(
        time_s=time.monotonic(),
        cores_s=sum(per_core[core].user + per_core[core].nice + per_core[core].system + per_core[core].steal for core in cores),
        own_s=sum(map(_own_cpu_s, own)),
    )


def _foreign_share(before: _CpuTime, after: _CpuTime, num_cores: int) -> float | None:
    """What others took of the cores' time, if that is enough to matter."""
    foreign_s = (after.cores_s - before.cores_s) - (after.own_s - before.own_s)
    share = foreign_s / max(1e-9, num_cores * (after.time_s - before.time_s))
    return min(share, 1.0) if share > _MAX_FOREIGN_SHARE and foreign_s >= _MIN_FOREIGN_S else None


def _own_cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _process_name(pid: int) -> str | None:
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).name())
    return None
