"""A process that loads torch once and forks the processes of one probe after the other: none of them can take the doctor down."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from types import TracebackType
from typing import Any

from gpualloc.errors import GpuallocError

# The parent's import path, as gpualloc.bench.ranks does.
_BOOTSTRAP = "import sys; sys.path[:] = sys.argv[1].split('\\n'); from gpualloc.doctor.probe_server import serve; serve()"
START_TIMEOUT_S = 30.0  # to load torch from a cold disk


class ProbeError(GpuallocError):
    """A probe failed, died or did not end in time."""


class ProbeServer:
    """Starts at once, so that torch loads while other checks run; nothing is left of it after the block."""

    def __enter__(self) -> ProbeServer:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, "\n".join(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._timeout_s = START_TIMEOUT_S
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def run(self, probe: str, *, world_size: int = 1, timeout_s: float = 10.0, **arguments: Any) -> list[Any]:
        """What each rank of the probe returned, in order.

        Raises:
            ProbeError: a rank raised, died or had not ended in time; the first of them is named.
        """
        assert self._process.stdin is not None
        order = {"probe": probe, "world_size": world_size, "timeout_s": timeout_s, "arguments": arguments}
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            line = self._read_line(timeout_s + self._timeout_s)
        except BrokenPipeError:
            line = b""
        self._timeout_s = 5.0  # torch is loaded
        if not line:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            raise ProbeError(f"the process that measures died: {words[-1] if words else 'without a word'}")
        answer = json.loads(line)
        if "error" in answer:
            raise ProbeError(answer["error"])
        values: list[Any] = answer["values"]
        return values

    def _read_line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise ProbeError(f"the process that measures did not answer within {timeout_s:.0f} s")
        line: bytes = self._process.stdout.readline()
        return line


def serve() -> None:
    """Runs the orders on stdin, one a line, until it is closed; an answer a line goes to stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    os.environ["OMP_NUM_THREADS"] = "1"  # a thread that runs when ranks are forked would leave its locks locked in them
    import torch
    import torch.distributed
    import torch.utils.data  # noqa: F401

    import gpualloc.doctor.probes  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="gpualloc-doctor-", ignore_cleanup_errors=True) as folder:
        for number, line in enumerate(sys.stdin):
            order = json.loads(line)
            own = os.path.join(folder, str(number))
            os.mkdir(own)
            try:
                answer: dict[str, Any] = {"values": _run_ranks(order, own)}
            except ProbeError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


def _run_ranks(order: dict[str, Any], folder: str) -> list[Any]:
    pipes, pids = [], []
    for rank in range(order["world_size"]):
        receiver, sender = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            _run_rank(sender, rank, order, folder)
        with contextlib.suppress(PermissionError):  # the rank has done so itself and gone on
            os.setpgid(pid, pid)
        os.close(sender)
        pipes.append(receiver)
        pids.append(pid)
    deadline_s = time.monotonic() + order["timeout_s"]
    try:
        return _collect(pipes, pids, deadline_s, order["timeout_s"])
    finally:
        for pid, pipe in zip(pids, pipes, strict=True):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # with a loader's workers
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            os.close(pipe)


def _run_rank(sender: int, rank: int, order: dict[str, Any], folder: str) -> None:
    from gpualloc.doctor.probes import PROBES

    try:
        outcome = {"value": PROBES[order["probe"]](rank, order["world_size"], folder, **order["arguments"])}
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        outcome = {"error": f"rank {rank}: {type(error).__name__}: {lines[0] if lines else ''}"}
    with os.fdopen(sender, "w") as stream:
        json.dump(outcome, stream)
    os._exit(0)


def _collect(pipes: list[int], pids: list[int], deadline_s: float, timeout_s: float) -> list[Any]:
    """The first rank to fail is told of, not the lowest: the others wait for it in vain."""
    texts = dict.fromkeys(pipes, b"")
    values: dict[int, Any] = {}
    waiting = list(pipes)
    while waiting:
        ready, _, _ = select.select(waiting, [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            ranks = ", ".join(str(pipes.index(pipe)) for pipe in waiting)
            raise ProbeError(f"rank {ranks} did not end within {timeout_s:g} s")
        for pipe in ready:
            chunk = os.read(pipe, 65536)
            texts[pipe] += chunk
            if chunk:
                continue
            waiting.remove(pipe)
            rank = pipes.index(pipe)
            if not texts[pipe]:
                _, status = os.waitpid(pids[rank], 0)
                raise ProbeError(f"rank {rank} died ({'signal ' + str(status & 127) if status & 127 else f'exit code {status >> 8}'})")
            outcome = json.loads(texts[pipe])
            if "error" in outcome:
                raise ProbeError(outcome["error"])
            values[rank] = outcome["value"]
    return [values[rank] for rank in range(len(pipes))]
