"""A process that has imported what ranks import, and forks them: of the seconds of a small case most were imports.

It computes nothing and asks for no GPU, so that a fork of it is what a new interpreter is once past its imports. One server is for one run
of many cases, whose command's environment and import path stay as they are; a rank's own environment is set after the fork.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gpualloc.bench import rank_files
from gpualloc.bench.rank_process import become_rank, end_with_parent
from gpualloc.errors import CaseFailedError

_BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); from gpualloc.bench.rank_server import serve; "
    "sys.exit(serve(int(sys.argv[2]), sys.argv[3:]))"
)


class RankServer:
    """Starts with the first rank and ends with the block: `with RankServer() as server`.

    Args:
        imported: modules that the ranks find imported.
    """

    def __init__(self, imported: Sequence[str] = ("gpualloc.bench.measure", "torch._dynamo")) -> None:
        self._imported = imported  # the second by the first step of an optimizer
        self._process: subprocess.Popen[str] | None = None
        self._num_asked = 0

    def __enter__(self) -> RankServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """The next rank begins another server."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def start(self, worker: str, folder: Path, rank: int, environment: Mapping[str, str]) -> ForkedRank:
        """A rank in a process group of its own, whose output goes to its file in `folder`.

        Raises:
            CaseFailedError: the server was ended; the next call starts another.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, "\n".join(sys.path), str(os.getpid()), *self._imported],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what an import says there it says in the rank as well, if it matters
                text=True,
                start_new_session=True,
            )
        pid = self.ask({"worker": worker, "folder": str(folder), "rank": rank, "environment": dict(environment)})
        if pid is None:
            raise CaseFailedError("the process that starts the ranks was ended", kind="failed")
        return ForkedRank(pid, self)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The server's answer; None where it was ended."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._num_asked += 1
        with contextlib.suppress(BrokenPipeError, json.JSONDecodeError):
            self._process.stdin.write(json.dumps([self._num_asked, request]) + "\n")
            self._process.stdin.flush()
            while True:
                number, answer = json.loads(self._process.stdout.readline())
                if number == self._num_asked:  # Ctrl-C may have kept an earlier answer from being read
                    return answer
        return None


class ForkedRank:
    """What is used of a subprocess.Popen, for a process whose parent is the server."""

    def __init__(self, pid: int, server: RankServer) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, below 0 minus the signal; None while it runs."""
        return self._look(os.WNOHANG)

    def wait(self) -> int:
        """The exit code once it has ended."""
        code = self._look(0)
        assert code is not None
        return code

    def _look(self, options: int) -> int | None:
        if self._code is None:
            found = self._server.ask({"wait_for": self.pid, "options": options})
            # The ranks of a server that was ended are killed by the kernel.
            pid, status = found if found is not None else (self.pid, int(signal.SIGKILL))
            self._code = os.waitstatus_to_exitcode(status) if pid == self.pid else None
        return self._code


def serve(parent_pid: int, imported: Sequence[str]) -> int:
    """Answers requests on stdin until it is closed. A rank's process returns its exit code from here."""
    end_with_parent(parent_pid)
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")  # streams of our own: what they read ahead is not the ranks'
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for module in imported:
        with contextlib.suppress(Exception):  # the rank meets the same error, and says so
            importlib.import_module(module)
    own_pid = os.getpid()
    for line in requests:
        number, request = json.loads(line)
        if "wait_for" in request:
            reply: Any = os.waitpid(request["wait_for"], request["options"])
        else:
            reply = os.fork()
            if reply == 0:
                requests.close()
                replies.close()
                _leave_server(request)
                return become_rank(request["worker"], Path(request["folder"]), request["rank"], own_pid)
            with contextlib.suppress(OSError):  # the rank does so as well; whoever is first
                os.setpgid(reply, reply)
        replies.write(json.dumps([number, reply]) + "\n")
        replies.flush()
    return 0


def _leave_server(request: Mapping[str, Any]) -> None:
    """What a new process would have been given."""
    os.setpgid(0, 0)
    output = rank_files.output_file(Path(request["folder"]), request["rank"])
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
