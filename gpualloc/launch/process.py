"""Who a process is: a number alone is reused, a number with the start time and the boot is not."""

from __future__ import annotations

import functools
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process of one machine, past or present."""

    pid: int
    start_ticks: int  # clock ticks from boot to its start, from /proc/PID/stat
    boot_id: str
    pid_namespace: str  # the same number is another process in another container

    @property
    def is_visible(self) -> bool:
        """Whether this process can tell if that one lives: it was started since the machine's, in the same namespace."""
        return self.boot_id == _boot_id() and self.pid_namespace == _pid_namespace()

    @property
    def is_alive(self) -> bool:
        """Whether it runs, seen from here; a zombie does not."""
        return self.is_visible and _start_ticks(self.pid) == self.start_ticks

    def kill(self) -> None:
        """SIGKILL, if it is still the same process.

        Raises:
            PermissionError: it is another user's.
        """
        if self.is_alive:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, after at most `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while self.is_alive:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True


def identify(pid: int | None = None) -> ProcessId | None:
    """The process with this number (default: this one), or None where there is none."""
    pid = os.getpid() if pid is None else pid
    start_ticks = _start_ticks(pid)
    if start_ticks is None:
        return None
    return ProcessId(pid=pid, start_ticks=start_ticks, boot_id=_boot_id(), pid_namespace=_pid_namespace())


def this_process() -> ProcessId:
    """Not kept: a fork is another process."""
    own = identify()
    assert own is not None
    return own


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None where the process is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return None if state in "ZX" else int(fields[18])


@functools.cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
