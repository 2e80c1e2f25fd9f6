"""What an engine is: something that starts a job, once per attempt, and tells how it ended."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.launch.job import Job

# A process that is stopped (SIGSTOP) for so long has stalled its job.
STOPPED_LIMIT_S = float(os.environ.get("GPUALLOC_STOPPED_LIMIT_S", "60"))


# torchrun kills ranks 30 s after it has told them to end, however long they were given to save a checkpoint: the engine's limit holds.
_SHUTDOWN = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"}  # read by torch >= 2.11


class EngineLostError(GpuallocError):
    """The engine does not answer any more, or is not there."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended."""

    is_ok: bool
    rank: int | None = None  # the one that failed first, where that is known
    message: str = ""  # one line; empty where it went well


class Attempt(Protocol):
    """A job that an engine has started."""

    reference: str  # what the engine calls it

    def poll(self) -> Ended | None:
        """How it ended; None while it runs or waits for the engine.

        Raises:
            EngineLostError: nobody knows.
        """
        ...

    def process_ids(self) -> Iterable[int]:
        """Processes of this machine that use its devices."""
        ...

    def terminate(self) -> None:
        """Asks it to end: ranks that `gpualloc.train` drives save a checkpoint first."""
        ...

    def kill(self) -> None:
        """Ends it; nothing of it is left afterwards."""
        ...


class Engine(Protocol):
    """Where jobs run."""

    name: str

    def leased_devices(self, job: Job) -> tuple[str, ...]:
        """Names of the devices to lease for the job; () where the engine itself shares them out.

        Raises:
            UsageError: the job cannot run here.
        """
        ...

    def render(self, job: Job, folder: Path) -> str:
        """Exactly what would run, as text, whether the engine is there or not."""
        ...

    def start(self, job: Job, folder: Path, attempt: int) -> Attempt:
        """Starts the job, for the `attempt`-th time.

        Args:
            folder: of the job; logs go to its sub-folder `attempt_folder(folder, attempt)`.

        Raises:
            EngineLostError: the engine is not there.
        """
        ...


def attempt_folder(folder: Path, attempt: int) -> Path:
    """Where the logs of an attempt are: rank0.log, rank1.log, ..., and agent.log of what started them."""
    return folder / f"attempt{attempt}"


def agent_log(folder: Path, attempt: int) -> Path:
    """What the engine's own process said: torchrun, a Slurm batch script."""
    return attempt_folder(folder, attempt) / "agent.log"


def job_environment(job: Job, folder: Path) -> dict[str, str]:
    """The variables of a job that are the same on every engine and in every attempt."""
    return {**_SHUTDOWN, **job.environment, **job.settings, "GPUALLOC_JOB_FOLDER": str(folder.absolute())}


def shell_lines(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """As one would type it."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " \\\n  ".join([*assignments, shlex.join(command)])


def parse_options(engine: str, words: Sequence[str], allowed: Mapping[str, str] | None) -> dict[str, str]:
    """KEY=VALUE words as a mapping.

    Args:
        allowed: names and what they mean; None: any.

    Raises:
        UsageError: no "=", or a name that the engine does not have.
    """
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {word!r} is not KEY=VALUE")
        if allowed is not None and key not in allowed:
            known = ", ".join(f"{name} ({meaning})" for name, meaning in allowed.items()) or "none"
            raise UsageError(f"--option {key!r} is unknown to {engine}; it has: {known}")
        options[key] = value
    return options


def python_path() -> str:
    """PYTHONPATH for processes that must find this gpualloc, installed or not."""
    here = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH", "")
    return here if not before else os.pathsep.join([here, *(part for part in before.split(os.pathsep) if part != here)])
