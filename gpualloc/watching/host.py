"""What the operating system says of the host and of its processes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePath

import psutil

from gpualloc.bench.environment import read_cpu_name
from gpualloc.errors import UsageError

# PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h: the namespace that the driver counts processes in.
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
_MAX_COMMAND_LENGTH = 80


@dataclass(frozen=True, kw_only=True)
class HostProcess:
    """A process as the operating system sees it."""

    started_unix_s: float | None = None
    user: str | None = None
    command: str | None = None
    cpu_percent: float | None = None  # of one core, since the look before
    rss_bytes: int | None = None


UNKNOWN_PROCESS = HostProcess()


class ProcessReader:
    """Reads processes again and again: who they are is asked once, what they do every time."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._is_first_namespace = _read_link("/proc/self/ns/pid") == _FIRST_PID_NAMESPACE

    def read(self, pid: int, *, is_drivers_number: bool) -> HostProcess:
        """The process with this number; nothing known of one that ended or is out of sight.

        Args:
            is_drivers_number: the GPU driver named it. From inside a container, the process that has this number here may be
                another one, so that nothing is said of it unless it has a GPU open.
        """
        try:
            known = self._known.get(pid)
            if known is None or not known.process.is_running():
                known = self._known[pid] = _Known(psutil.Process(pid))
            if is_drivers_number and not (self._is_first_namespace or known.has_gpu_open()):
                return UNKNOWN_PROCESS
            return known.read()
        except psutil.Error:
            self._known.pop(pid, None)
            return UNKNOWN_PROCESS

    def end_look(self, pids: Collection[int]) -> None:
        """The next `read` looks again; all processes but these are forgotten."""
        self._known = {pid: known for pid, known in self._known.items() if pid in pids}
        for known in self._known.values():
            known.seen = None


class _Known:
    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self._identity: tuple[str | None, str | None] | None = None
        self._has_gpu_open = False
        self._was_read = False
        self.seen: HostProcess | None = None  # in this look: whoever is on several GPUs, or named as well, took its CPU time once

    def has_gpu_open(self) -> bool:
        if not self._has_gpu_open:
            directory = f"/proc/{self.process.pid}/fd"
            try:
                self._has_gpu_open = any(_read_link(f"{directory}/{name}").startswith("/dev/nvidia") for name in os.listdir(directory))
            except OSError:
                return False
        return self._has_gpu_open

    def read(self) -> HostProcess:
        if self.seen is None:
            self.seen = self._look()
        return self.seen

    def _look(self) -> HostProcess:
        with self.process.oneshot():
            if self._identity is None:
                self._identity = (_user(self.process), _command(self.process))
            cpu_percent = self.process.cpu_percent()
            was_read, self._was_read = self._was_read, True
            return HostProcess(
                started_unix_s=self.process.create_time(),
                user=self._identity[0],
                command=self._identity[1],
                cpu_percent=cpu_percent if was_read else None,  # psutil's first answer is 0.0 whatever the process does
                rss_bytes=int(self.process.memory_info().rss),
            )


class HostReader:
    """Utilisation and memory of the host."""

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.name = read_cpu_name()
        self._was_read = False

    def read_utilisation_percent(self) -> float | None:
        """Busy share of all cores since the look before; None at the first one."""
        percent = psutil.cpu_percent()
        was_read, self._was_read = self._was_read, True
        return float(percent) if was_read else None

    def read_memory_bytes(self) -> tuple[int, int]:
        """(used, total): used is what a new process could not have."""
        memory = psutil.virtual_memory()
        return int(memory.total - memory.available), int(memory.total)


class WatchedJobs:
    """The processes named with --pid and all that they start."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Raises: UsageError: a process that does not exist."""
        self._alive: set[psutil.Process] = set()
        for pid in pids:
            try:
                self._alive.add(psutil.Process(pid))
            except (psutil.Error, ValueError, OverflowError) as error:
                raise UsageError(f"--pid {pid}: there is no such process here; see those there are with: ps -ef") from error

    def pids(self) -> list[int]:
        """Of those alive now; children go on to count when their parent has ended."""
        for process in list(self._alive):
            with contextlib.suppress(psutil.Error):
                self._alive.update(process.children(recursive=True))
        self._alive = {process for process in self._alive if _is_alive(process)}
        return sorted(process.pid for process in self._alive)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _user(process: psutil.Process) -> str | None:
    try:
        return str(process.username())
    except (psutil.Error, KeyError):
        return None


def _command(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
        return short_command(words) or str(process.name()) or None
    except psutil.Error:
        return None


def short_command(words: list[str]) -> str:
    """Program and script: ["/usr/bin/python3", "-u", "/home/ada/train.py", "--token=..."] -> "python3 train.py"."""
    if not words:
        return ""
    shown = [PurePath(words[0]).name]
    if shown[0].startswith(("python", "torchrun", "accelerate", "deepspeed")):
        rest = iter(words[1:])
        for word in rest:
            if word == "-m":
                shown += ["-m", next(rest, "")]
                break
            if word == "-c":
                shown.append("-c")
                break
            if word.endswith(".py"):
                shown.append(PurePath(word).name)
                break
    printable = "".join(char if char.isprintable() else "?" for char in " ".join(shown).strip())
    return printable.encode("utf-8", "replace").decode()[:_MAX_COMMAND_LENGTH]


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
