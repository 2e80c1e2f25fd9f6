"""How a process becomes a rank, whether it is a new interpreter or forked by the server of ranks."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def become_rank(worker: str, folder: Path, rank: int, parent_pid: int) -> int:
    """Runs `main(folder, rank)` of the module `worker`; the process ends with its parent. Returns the exit code."""
    end_with_parent(parent_pid)
    return int(importlib.import_module(worker).main(folder, rank))


def end_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies, however it dies."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)
