"""`gpualloc logs`: what the ranks of a job said."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpualloc.cli.run import State
from gpualloc.errors import GpuallocError, UsageError

if TYPE_CHECKING:
    from gpualloc.launch.jobs import JobRecord

_POLL_S = 0.2
_CHUNK_BYTES = 2**16


def logs(
    job: Annotated[str, typer.Argument(metavar="NAME", help="A workload, or the number of a job; see gpualloc status.")],
    rank: Annotated[int, typer.Option(help="Of which rank.")] = 0,
    agent: Annotated[bool, typer.Option("--agent", help="What torchrun or the engine said instead.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Of which start (default: the newest).")] = None,
    tail: Annotated[int | None, typer.Option(help="Only the last lines, so many.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends, or Ctrl-C.")] = False,
    state: State = None,
) -> None:
    """Show what a rank of a job printed, of the newest start or an earlier one.

    Examples:
      gpualloc logs vision
      gpualloc logs vision --rank 3 --tail 20
      gpualloc logs 12 --agent --attempt 1
    """
    from gpualloc.launch.engine import attempt_folder
    from gpualloc.launch.jobs import JobStore
    from gpualloc.launch.schema import default_state_path

    with JobStore(state or default_state_path(), create=False) as store:
        record = store.find(job)
        number = attempt or record.attempt
        folder = attempt_folder(record.folder, number)
        path = folder / ("agent.log" if agent else f"rank{rank}.log")
        if not follow or path.exists():
            _check(path, folder, record)
        position = _print_from(path, tail)
        while follow:
            is_over = store.find(str(record.job_id)).status not in ("queued", "running")
            position = _copy(path, position)
            if is_over:
                return
            time.sleep(_POLL_S)


def _check(path: Path, folder: Path, record: JobRecord) -> None:
    if path.exists():
        return
    if record.attempt == 0:
        raise GpuallocError(f"job {record.job_id} ({record.name}) has not started: {record.reason or record.status}")
    there = ", ".join(sorted(each.stem for each in folder.glob("*.log"))) or "none; the starts are 1 to " + str(record.attempt)
    raise UsageError(f"job {record.job_id} ({record.name}) has no {path.name} in {folder}; there is: {there}")


def _print_from(path: Path, tail: int | None) -> int:
    """Copies the file, or its last lines, to stdout and returns where it ended."""
    if tail is None or not path.exists():
        return _copy(path, 0)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    _write(b"".join(lines[-tail:] if tail > 0 else []))
    return len(data)


def _copy(path: Path, position: int) -> int:
    if not path.exists():
        return position
    with path.open("rb") as file:
        file.seek(position)
        while chunk := file.read(_CHUNK_BYTES):
            _write(chunk)
            position += len(chunk)
    return position


def _write(data: bytes) -> None:
    sys.stdout.write(data.decode(errors="backslashreplace"))
    sys.stdout.flush()
