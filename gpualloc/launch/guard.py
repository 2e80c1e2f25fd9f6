"""Becomes the command after `--`, which the kernel kills when its parent dies: `python -I -S guard.py -- COMMAND...`

A kill -9 of a launcher leaves nothing behind: each process it starts, and each rank that those start, goes through here. Only
the standard library: this runs before the user's interpreter does. From the environment:

    GPUALLOC_GUARD_PARENT  the process that must still be the parent
    GPUALLOC_LOG_FOLDER    a rank's stdout and stderr are added to rank<RANK>.log in it
    GPUALLOC_CORES         "0,1;2,3": the cores of local ranks 0, 1, ...
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
_NOT_FOUND = 127  # as a shell


def main(words: list[str]) -> int:
    """Returns only where the command cannot be started."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        print("gpualloc: prctl(PR_SET_PDEATHSIG) failed", file=sys.stderr)
        return 1
    parent = os.environ.get("GPUALLOC_GUARD_PARENT")
    if parent is not None and os.getppid() != int(parent):  # it died before the line above
        return 1
    os.environ["GPUALLOC_GUARD_PARENT"] = str(os.getpid())  # exec keeps the number
    if "RANK" in os.environ:
        _bind()
        _redirect()
    try:
        os.execvp(words[0], words)
    except OSError as error:
        print(f"gpualloc: cannot start {words[0]!r}: {error.strerror}", file=sys.stderr)
    return _NOT_FOUND


def _bind() -> None:
    cores = os.environ.get("GPUALLOC_CORES")
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(";")[int(os.environ.get("LOCAL_RANK", "0"))].split(",")))


def _redirect() -> None:
    folder = os.environ.get("GPUALLOC_LOG_FOLDER")
    if folder:
        os.makedirs(folder, exist_ok=True)  # on the other nodes of a job it may not be there
        log = os.open(os.path.join(folder, f"rank{os.environ['RANK']}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :]))
