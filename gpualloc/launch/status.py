"""What is known of a job: its record, its progress, and for one that nobody watches what its engine says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpualloc.launch.jobs import Fault, JobRecord, JobStore
from gpualloc.launch.progress import Progress, read_progress

if TYPE_CHECKING:
    from gpualloc.launch.runner import RunningJob


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A job at one moment."""

    job_id: int
    name: str
    engine: str | None
    status: str
    reason: str | None
    reference: str | None
    num_attempts: int
    folder: Path
    progress: Progress | None
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of_running(cls, running: RunningJob) -> Seen:
        return cls(
            job_id=running.job_id,
            name=running.job.name,
            engine=None,
            status=running.status,
            reason=running.reason,
            reference=None,
            num_attempts=running.num_attempts,
            folder=running.folder,
            progress=read_progress(running.folder),
        )

    @classmethod
    def of_record(cls, record: JobRecord, faults: list[Fault]) -> Seen:
        return cls(
            job_id=record.job_id,
            name=record.name,
            engine=record.engine,
            status=record.status,
            reason=record.reason,
            reference=record.reference,
            num_attempts=record.attempt,
            folder=record.folder,
            progress=read_progress(record.folder),
            faults=tuple(faults),
        )


def look(state: Path) -> list[Seen]:
    """All jobs, newest first. Those whose launcher is gone are settled first: a Slurm job runs on without it, others have died with it.

    Raises:
        StoreError: the state file cannot be used.
    """
    with JobStore(state, create=False) as store:
        for record in store.jobs():
            if record.is_orphaned:
                settle(store, record)
        return [Seen.of_record(record, store.faults(record.job_id)) for record in store.jobs()]


def settle(store: JobStore, record: JobRecord) -> None:
    """Records how a job without a launcher stands."""
    if record.engine == "slurm" and record.reference is not None:
        from gpualloc.launch.slurm import SlurmAttempt

        ended = SlurmAttempt.of_reference(record.reference, record.folder, record.attempt).poll()
        if ended is not None:
            store.finish(record.job_id, "complete" if ended.is_ok else "failed", ended.message or None)
        return
    store.finish(record.job_id, "lost", f"its launcher, process {record.launcher.pid}, is gone, and the job with it")


def end_orphan(store: JobStore, record: JobRecord) -> None:
    """Ends a job that nobody watches."""
    if record.engine == "slurm" and record.reference is not None:
        from gpualloc.launch.slurm import SlurmAttempt

        SlurmAttempt.of_reference(record.reference, record.folder, record.attempt).kill()
        store.finish(record.job_id, "stopped", "stopped as asked")
        return
    settle(store, record)
