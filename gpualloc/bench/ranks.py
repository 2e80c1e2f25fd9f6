"""The processes of a case: started together, watched, and all gone at the end whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from gpualloc.bench import rank_files
from gpualloc.bench.rank_files import RankFailure, RankReport
from gpualloc.bench.rank_server import RankServer
from gpualloc.errors import CaseFailedError

_POLL_S = 0.1  # seldom enough not to disturb what is measured
_TERM_TO_KILL_S = 10.0
_EXIT_S = 10.0  # for a rank that has reported
_CONSEQUENCES_S = 1.0  # how long the failure that came first may show later than one that followed from it
_STOPPED_LIMIT_S = 60.0

# The parent's import path, so that nothing in the working directory takes the place of a module; "-m" would put it first.
_BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[3].split('\\n'); from pathlib import Path; from gpualloc.bench.rank_process import become_rank; "
    "sys.exit(become_rank(sys.argv[4], Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[5])))"
)


class RankProcess(Protocol):
    """A subprocess.Popen, or a fork of the server of ranks."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


@contextlib.contextmanager
def started_ranks(
    folder: Path,
    environments: Sequence[Mapping[str, str]],
    *,
    worker: str = "gpualloc.bench.worker",
    wrap_command: Callable[[int, list[str]], list[str]] = lambda rank, command: command,
    server: RankServer | None = None,
) -> Iterator[Sequence[RankProcess]]:
    """One process per environment, each in a process group of its own; none is left after the block.

    Args:
        folder: holds the order; reports, failures and output go there.
        environments: of rank 0, 1, ...
        worker: the module whose `main(folder, rank)` a process runs.
        wrap_command: (rank, command) -> the command that becomes it, such as one that enters a network namespace first.
        server: forks the ranks; None: each is a new interpreter.
    """
    processes: list[RankProcess] = []
    try:
        for rank, environment in enumerate(environments):
            if server is not None:
                processes.append(server.start(worker, folder, rank, environment))
                continue
            with rank_files.output_file(folder, rank).open("wb") as output:
                command = [sys.executable, "-c", _BOOTSTRAP, str(folder), str(rank), "\n".join(sys.path), worker, str(os.getpid())]
                processes.append(
                    subprocess.Popen(
                        wrap_command(rank, command),
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        _stop(processes)


def wait_for_reports(folder: Path, processes: Sequence[RankProcess], *, timeout_s: float) -> list[RankReport]:
    """The reports of all ranks, in order.

    Raises:
        CaseFailedError: as `wait_for_ranks`.
    """
    wait_for_ranks(folder, processes, timeout_s=timeout_s)
    return [rank_files.read_report(folder, rank) for rank in range(len(processes))]


def wait_for_ranks(folder: Path, processes: Sequence[RankProcess], *, timeout_s: float) -> None:
    """Returns once every rank has left its report.

    Raises:
        CaseFailedError: of the rank that failed first, or of the ranks that had not finished in time.
    """
    watch = _Watch(folder, processes)
    deadline_s = time.monotonic() + timeout_s
    while True:
        failures = watch.failures()
        if failures:
            time.sleep(_CONSEQUENCES_S)
            rank, failure = min(watch.failures().items(), key=lambda item: item[1].time_s)
            raise CaseFailedError(f"rank {rank}: {failure.message}", rank=rank, kind=failure.kind)
        if all(rank_files.has_report(folder, rank) for rank in range(len(processes))):
            _wait_for_exit(processes, _EXIT_S)
            return
        stopped = watch.stopped_for_s()
        for rank, stopped_s in stopped.items():
            if stopped_s > min(_STOPPED_LIMIT_S, timeout_s):
                raise CaseFailedError(f"rank {rank} has been stopped (SIGSTOP) for {stopped_s:.0f} s", rank=rank, kind="timeout")
        if time.monotonic() > deadline_s:
            raise CaseFailedError(_describe_timeout(watch, timeout_s), rank=min(stopped, default=None), kind="timeout")
        time.sleep(_POLL_S)


@dataclass
class _Watch:
    folder: Path
    processes: Sequence[RankProcess]
    _stopped_since_s: dict[int, float] = field(default_factory=dict)
    _died_at_s: dict[int, float] = field(default_factory=dict)

    def failures(self) -> dict[int, RankFailure]:
        """rank -> why it failed, of the ranks that did."""
        found = {}
        for rank, process in enumerate(self.processes):
            code = process.poll()  # before the files are looked at: a rank writes, then exits
            if rank_files.has_report(self.folder, rank):
                continue
            failure = rank_files.read_failure(self.folder, rank)
            if failure is None and code is not None:
                failure = self._describe_death(rank, code)
            if failure is not None:
                found[rank] = failure
        return found

    def stopped_for_s(self) -> dict[int, float]:
        """rank -> for how long its process has been stopped, of the ranks that are."""
        now_s = time.monotonic()
        stopped = [rank for rank, status in self.statuses().items() if status == psutil.STATUS_STOPPED]
        self._stopped_since_s = {rank: self._stopped_since_s.get(rank, now_s) for rank in stopped}
        return {rank: now_s - since_s for rank, since_s in self._stopped_since_s.items()}

    def statuses(self) -> dict[int, str]:
        """rank -> state of its process, of the ranks that have not reported."""
        found: dict[int, str] = {}
        for rank, process in enumerate(self.processes):
            if not rank_files.has_report(self.folder, rank):
                with contextlib.suppress(psutil.Error):
                    found[rank] = psutil.Process(process.pid).status()
        return found

    def _describe_death(self, rank: int, code: int) -> RankFailure:
        died_at_s = self._died_at_s.setdefault(rank, time.monotonic())
        if code >= 0:
            return RankFailure(kind="failed", message=f"exited with code {code}: {self._last_output(rank)}", time_s=died_at_s)
        if -code == signal.SIGABRT:  # often torch's answer to the loss of a peer
            return RankFailure(kind="failed", message=f"was ended by SIGABRT: {self._last_output(rank)}", time_s=died_at_s)
        # A cause and never a consequence, but it can be seen later than the errors of the peers, which the kernel tells first.
        hint = " (the kernel's out-of-memory killer sends it, too)" if -code == signal.SIGKILL else ""
        return RankFailure(kind="failed", message=f"was ended by {_signal_name(-code)}{hint}", time_s=float("-inf"))

    def _last_output(self, rank: int) -> str:
        lines = rank_files.output_file(self.folder, rank).read_text(errors="replace").strip().splitlines()
        return rank_files.one_line(lines[-1] if lines else "")


def _describe_timeout(watch: _Watch, timeout_s: float) -> str:
    unfinished = ", ".join(f"rank {rank} ({status})" for rank, status in watch.statuses().items())
    return f"not finished after {timeout_s:g} s: {unfinished}; raise --timeout-s if the case is only slow"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _wait_for_exit(processes: Sequence[RankProcess], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _stop(processes: Sequence[RankProcess]) -> None:
    """SIGTERM, 10 s, SIGKILL, to each rank and the processes it started."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        _signal_group(process, signal.SIGTERM)
        _signal_group(process, signal.SIGCONT)  # a stopped process would not see the other one
    _wait_for_exit(running, _TERM_TO_KILL_S)
    for process in processes:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: RankProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
