"""`gpualloc` whose ranks are forks of it with torch imported rather than new interpreters: `python -m tests.soak.forking_bench bench ...`

Of the four seconds that a small case computes all but a few hundredths are imports. All else is as in the command: a session and an output
file for each rank, its order and report in a folder, its death seen and its place cleared.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
import torch._dynamo  # by the optimiser's first step

from gpualloc.bench import measure, ranks, worker
from gpualloc.cli import app

IMPORTED = (torch, measure)
FIRST_FILE, MOST_FILES = 3, 1024  # past the standard ones


class Fork:
    """What `started_ranks` asks of a subprocess.Popen."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], stdout: BinaryIO, **_: Any) -> None:
        *_, folder, rank, _paths = command
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
                os.closerange(FIRST_FILE, MOST_FILES)
                os.environ.clear()
                os.environ.update(env)
                code = worker.main(Path(folder), int(rank))
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        return self._look(os.WNOHANG)

    def wait(self) -> int | None:
        return self._look(0)

    def _look(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


if __name__ == "__main__":
    ranks.subprocess = SimpleNamespace(Popen=Fork, DEVNULL=None)  # type: ignore[assignment]
    sys.exit(app.main())
