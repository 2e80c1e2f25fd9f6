"""A process with all it has started, watched and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import psutil


class ProcessTree:
    """Of a child of this process that has a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._root = psutil.Process(process.pid)  # knows its start time: a number that is used again is not it
        self._stopped_since_s: dict[int, float] = {}

    def ids(self) -> list[int]:
        """The process and its descendants."""
        return [member.pid for member in self._members()]

    def ranks(self) -> dict[int, psutil.Process]:
        """rank -> its process: the descendants with RANK in their environment, those alone whose parent has another."""
        found: dict[int, psutil.Process] = {}
        for member in self._members():
            with contextlib.suppress(psutil.Error, ValueError, KeyError):
                found.setdefault(int(member.environ()["RANK"]), member)
        return found

    def stopped_for_s(self) -> dict[int, float]:
        """pid -> for how long it has been stopped (SIGSTOP), of those that are."""
        now_s = time.monotonic()
        stopped = []
        for member in self._members():
            with contextlib.suppress(psutil.Error):
                if member.status() == psutil.STATUS_STOPPED:
                    stopped.append(member.pid)
        self._stopped_since_s = {pid: self._stopped_since_s.get(pid, now_s) for pid in stopped}
        return {pid: now_s - since_s for pid, since_s in self._stopped_since_s.items()}

    def terminate(self) -> None:
        """SIGTERM to the first process, which is to tell the others, and SIGCONT to all, since who is stopped hears nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)
        for pid in self.ids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all, until none is left."""
        members = self._members()
        while members:
            for member in members:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            psutil.wait_procs(members, timeout=1.0)
            members = [member for member in self._members() if member not in members]
        self.process.wait()

    def _members(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)] if self._root.is_running() else []
        except psutil.Error:
            return []
