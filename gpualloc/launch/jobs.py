"""Records of jobs: what runs where on which engine, how it ended, and its faults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from gpualloc.errors import UsageError
from gpualloc.launch.local_files import refuse_network_file_system
from gpualloc.launch.process import ProcessId, this_process
from gpualloc.launch.schema import SCHEMA
from gpualloc.store import database

JobStatus = Literal["queued", "running", "complete", "failed", "stopped", "lost", "written"]
ENDED: tuple[JobStatus, ...] = ("complete", "failed", "stopped", "lost", "written")

_COLUMNS = (
    "job_id",
    "name",
    "engine",
    "status",
    "reason",
    "folder",
    "assignment",
    "reference",
    "attempt",
    "is_stop_asked",
    "pid",
    "start_ticks",
    "boot_id",
    "pid_namespace",
    "queued_at_utc",
    "started_at_utc",
    "finished_at_utc",
)
_NUM_LISTED = 10  # in a message


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One workload of a plan that was handed to an engine."""

    job_id: int
    name: str  # of the workload
    engine: str
    status: str  # a JobStatus
    reason: str | None  # why it failed, was stopped or waits
    folder: Path  # logs and progress
    assignment: dict[str, Any]  # as in the plan; {} where the row is damaged
    reference: str | None  # what the engine calls it: a process, a Slurm job
    attempt: int  # starts so far
    is_stop_asked: bool
    launcher: ProcessId
    queued_at_utc: str  # ISO 8601
    started_at_utc: str | None  # first start
    finished_at_utc: str | None

    @property
    def is_orphaned(self) -> bool:
        """Nobody watches over it although it has not ended."""
        return self.status not in ENDED and not self.launcher.is_alive


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that ended an attempt."""

    at_utc: str
    attempt: int
    rank: int | None  # None where no rank is known to have failed first
    message: str


class JobStore:
    """The jobs in the state file, open as long as the `with` block lasts. Each change is committed durably before the call returns.

    Raises:
        StoreError: from every method, naming the file and the remedy.
    """

    def __init__(self, path: Path, *, create: bool = True, lock_timeout_s: float = 10.0) -> None:
        refuse_network_file_system(path)
        self.path = path
        self._connection = database.connect(path, schema=SCHEMA, create=create, lock_timeout_s=lock_timeout_s)

    def __enter__(self) -> JobStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def add(self, *, name: str, engine: str, folder: Path, assignment: dict[str, Any], status: JobStatus = "queued") -> int:
        """Records a job that this process launches and returns its number."""
        launcher = asdict(this_process())
        values = {
            "name": name,
            "engine": engine,
            "status": status,
            "folder": str(folder),
            "assignment": json.dumps(assignment),
            "queued_at_utc": now_utc(),
            **launcher,
        }
        cursor = self._execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", *values.values())
        assert cursor.lastrowid is not None
        return int(cursor.lastrowid)

    def set_folder(self, job_id: int, folder: Path) -> None:
        """Where the job's logs are: named by its number, which is known once it is added."""
        self._execute("UPDATE jobs SET folder = ? WHERE job_id = ?", str(folder.absolute()), job_id)

    def start(self, job_id: int, *, reference: str, attempt: int) -> None:
        """A job runs, for the first time or again."""
        self._execute(
            "UPDATE jobs SET status = 'running', reason = NULL, reference = ?, attempt = ?, started_at_utc = COALESCE(started_at_utc, ?)"
            " WHERE job_id = ?",
            reference,
            attempt,
            now_utc(),
            job_id,
        )

    def explain(self, job_id: int, reason: str) -> None:
        """Why a job waits."""
        self._execute("UPDATE jobs SET reason = ? WHERE job_id = ?", reason, job_id)

    def finish(self, job_id: int, status: JobStatus, reason: str | None = None) -> None:
        """A job has ended."""
        self._execute("UPDATE jobs SET status = ?, reason = ?, finished_at_utc = ? WHERE job_id = ?", status, reason, now_utc(), job_id)

    def add_fault(self, job_id: int, *, attempt: int, rank: int | None, message: str) -> None:
        self._execute(
            "INSERT INTO faults (job_id, at_utc, attempt, rank, message) VALUES (?, ?, ?, ?, ?)", job_id, now_utc(), attempt, rank, message
        )

    def ask_to_stop(self, job_id: int) -> None:
        """Its launcher sees it within a second."""
        self._execute("UPDATE jobs SET is_stop_asked = 1 WHERE job_id = ?", job_id)

    def asked_to_stop(self, job_ids: Sequence[int]) -> set[int]:
        """Those of the jobs that somebody wants to end."""
        marks = ", ".join("?" * len(job_ids))
        return {row[0] for row in self._fetch(f"SELECT job_id FROM jobs WHERE is_stop_asked AND job_id IN ({marks})", *job_ids)}

    def jobs(self) -> list[JobRecord]:
        """All jobs, newest first."""
        return [_record(row) for row in self._fetch(f"SELECT {', '.join(_COLUMNS)} FROM jobs ORDER BY job_id DESC")]

    def find(self, name: str) -> JobRecord:
        """The job of this number, or the newest of this name.

        Raises:
            UsageError: there is none; names those there are.
        """
        jobs = self.jobs()
        found = next((job for job in jobs if name in (job.name, str(job.job_id))), None)
        if found is None:
            known = ", ".join(dict.fromkeys(job.name for job in jobs[: 10 * _NUM_LISTED])) or "none"
            raise UsageError(f"there is no job {name!r}; known: {known}; see gpualloc status")
        return found

    def faults(self, job_id: int) -> list[Fault]:
        """What ended attempts of a job, oldest first."""
        rows = self._fetch("SELECT at_utc, attempt, rank, message FROM faults WHERE job_id = ? ORDER BY fault_id", job_id)
        return [Fault(at_utc=at_utc, attempt=attempt, rank=rank, message=message) for at_utc, attempt, rank, message in rows]

    def _execute(self, statement: str, *values: object) -> Any:
        with database.translated_errors(self.path, SCHEMA):
            return self._connection.execute(statement, values)

    def _fetch(self, statement: str, *values: object) -> list[Any]:
        rows: list[Any] = self._execute(statement, *values).fetchall()
        return rows


def now_utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _record(row: Sequence[Any]) -> JobRecord:
    fields = dict(zip(_COLUMNS, row, strict=True))
    launcher = {name: fields.pop(name) for name in ("pid", "start_ticks", "boot_id", "pid_namespace")}
    try:
        assignment = json.loads(fields["assignment"])
    except ValueError:
        assignment = {}
    return JobRecord(
        **{
            **fields,
            "folder": Path(fields["folder"]),
            "assignment": assignment if isinstance(assignment, dict) else {},
            "is_stop_asked": bool(fields["is_stop_asked"]),
            "launcher": ProcessId(**launcher),
        }
    )
