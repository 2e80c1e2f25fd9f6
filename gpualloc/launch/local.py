"""The local engine: torchrun for every job on this machine, on the devices that it has leased."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from gpualloc.errors import UsageError
from gpualloc.launch import local_devices
from gpualloc.launch.engine import STOPPED_LIMIT_S, Ended, agent_log, attempt_folder, job_environment, python_path, shell_lines
from gpualloc.launch.job import Job
from gpualloc.launch.process_tree import ProcessTree
from gpualloc.launch.rank_places import describe_missing
from gpualloc.launch.torchrun import first_failure, guarded, last_line, node_command, said_timeout


class LocalEngine:
    """Runs jobs as processes of this machine.

    Args:
        node: what the plan calls this machine; None: its host name.
        stopped_limit_s: how long a process may be stopped (SIGSTOP) before its job counts as stalled.
        warn: told of other processes on a GPU.
    """

    name = "local"

    def __init__(self, *, node: str | None, warn: Callable[[str], None], stopped_limit_s: float = STOPPED_LIMIT_S) -> None:
        self._node, self._warn, self._stopped_limit_s = node, warn, stopped_limit_s

    def leased_devices(self, job: Job) -> tuple[str, ...]:
        local_devices.check_node(job, self._node)
        return local_devices.device_names(job)

    def render(self, job: Job, folder: Path) -> str:
        try:
            visible = [] if job.is_cpu else list(local_devices.device_names(job))
        except UsageError:  # the GPUs are not there
            visible = local_devices.planned_names(job)
        return shell_lines(_environment(job, folder, 1, visible), _command(job, 1))

    def start(self, job: Job, folder: Path, attempt: int) -> LocalAttempt:
        devices = local_devices.device_names(job)
        others = [] if job.is_cpu else local_devices.foreign_processes(devices)
        if others:
            self._warn(f"{job.name}: {', '.join(others)} runs there already; both will be slower, and the rate is not to be trusted")
        environment = {**os.environ, **_environment(job, folder, attempt, [] if job.is_cpu else list(devices))}
        environment["PYTHONPATH"] = python_path()
        environment["GPUALLOC_GUARD_PARENT"] = str(os.getpid())
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # of a launcher around this one
            environment.pop(name, None)
        log = agent_log(folder, attempt)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                guarded(_command(job, attempt)),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the launcher, which ends the others in order
            )
        return LocalAttempt(process, log, self._stopped_limit_s)


class LocalAttempt:
    """A running torchrun."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, stopped_limit_s: float) -> None:
        self._tree = ProcessTree(process)
        self._log, self._stopped_limit_s = log, stopped_limit_s
        self.reference = f"process {process.pid}"

    def poll(self) -> Ended | None:
        code = self._tree.process.poll()
        if code is None:
            return self._stall()
        return Ended(is_ok=True) if code == 0 else describe_failure(self._log, code)

    def process_ids(self) -> Iterable[int]:
        return self._tree.ids()

    def terminate(self) -> None:
        self._tree.terminate()

    def kill(self) -> None:
        self._tree.kill()

    def _stall(self) -> Ended | None:
        stopped = {pid: for_s for pid, for_s in self._tree.stopped_for_s().items() if for_s > self._stopped_limit_s}
        if not stopped:
            return None
        rank = next((rank for rank, process in self._tree.ranks().items() if process.pid in stopped), None)
        who = f"process {min(stopped)}" if rank is None else f"rank {rank}"
        return Ended(is_ok=False, rank=rank, message=f"{who} has been stopped (SIGSTOP) for {max(stopped.values()):.0f} s")


def describe_failure(log: Path, code: int) -> Ended:
    """Why torchrun, or a bare command, ended with `code`: the rank that failed first, and its last words."""
    try:
        first = first_failure(log.read_text(errors="replace"))
    except OSError:
        first = None
    if first is None:
        said = last_line(log)
        return Ended(is_ok=False, message=f"{_describe_code(code)}{f': {said}' if said else ''}")
    rank_log = log.parent / f"rank{first.rank}.log"
    spoke = first.exit_code >= 0 or -first.exit_code == signal.SIGABRT
    said = last_line(rank_log) if spoke else ""
    missing = describe_missing(log.parent) if spoke and said_timeout(rank_log) else ""
    words = ": ".join(filter(None, (f"rank {first.rank} {_describe_code(first.exit_code)}", said)))
    return Ended(is_ok=False, rank=first.rank, message="; ".join(filter(None, (words, missing))))


def _describe_code(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (the kernel's out-of-memory killer sends it, too)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _command(job: Job, attempt: int) -> list[str]:
    return node_command(job, attempt=attempt, numa=local_devices.can_bind_to_numa_nodes(job))


def _environment(job: Job, folder: Path, attempt: int, visible: list[str]) -> dict[str, str]:
    num_gpus = 0 if job.is_cpu else max(len(local_devices.read_gpus()), len(job.devices))
    environment = {"OMP_NUM_THREADS": str(local_devices.threads_per_rank(job, num_gpus)), **job_environment(job, folder)}
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    if not job.is_cpu:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order, in case of indices
    if not job.is_bare:
        environment["GPUALLOC_LOG_FOLDER"] = str(attempt_folder(folder, attempt).absolute())
        cores = local_devices.cores_of(job)
        if cores is not None:
            environment["GPUALLOC_CORES"] = cores
    return environment
