"""The loop that makes a plan happen: start what can start, watch it, start it again, end it, record all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpualloc.errors import GpuallocError, StoreError
from gpualloc.launch import observed
from gpualloc.launch.engine import Attempt, Ended, Engine, EngineLostError, attempt_folder
from gpualloc.launch.job import Job
from gpualloc.launch.jobs import JobStatus, JobStore
from gpualloc.launch.leases import DEFAULT_TTL_S, DeviceBusyError, Lease, LeaseLostError, LeaseStore

_POLL_S = 0.2
_RENEWALS = 4  # in the time that a lease holds
TERM_TO_KILL_S = 10.0


@dataclass(kw_only=True)
class RunningJob:
    """A job on its way through the loop."""

    job: Job
    job_id: int
    folder: Path
    status: JobStatus = "queued"
    reason: str | None = None
    num_attempts: int = 0
    attempt: Attempt | None = None
    is_stopping: bool = False
    kill_at_s: float = float("inf")


@dataclass(kw_only=True)
class _Group:
    """Jobs that share devices and so one lease; mostly one job."""

    members: list[RunningJob]
    devices: tuple[str, ...]
    lease: Lease | None = None
    waits_for: str | None = None


@dataclass(kw_only=True)
class Runner:
    """Runs jobs on an engine until all have ended.

    Args:
        state: the file of leases and jobs.
        jobs_folder: a sub-folder for each job's logs.
        results: the store that rates and faults go to; None: nowhere.
        say: told of what happens, for people.
        is_patient: wait for devices that another process holds, rather than refuse.
        term_to_kill_s: between SIGTERM and SIGKILL.
    """

    engine: Engine
    state: Path
    jobs_folder: Path
    results: Path | None
    say: Callable[[str], None]
    is_patient: bool = True
    term_to_kill_s: float = TERM_TO_KILL_S
    lease_ttl_s: float = DEFAULT_TTL_S
    running: list[RunningJob] = field(default_factory=list)
    _groups: list[_Group] = field(default_factory=list)
    _renewed_s: float = 0.0

    def run(self, jobs: Sequence[Job]) -> list[RunningJob]:
        """Returns the jobs with how they ended.

        Raises:
            DeviceBusyError: not patient, and a device is held; nothing was started.
            UsageError, EngineLostError, StoreError: nothing of what was started is left.
        """
        wanted = [(job, self.engine.leased_devices(job)) for job in jobs]  # refused before any work starts
        with LeaseStore(self.state) as leases, JobStore(self.state) as store:
            for held in leases.clear_stale():
                self.say(f"cleared the lease of {held.holder} on {', '.join(held.devices)}: process {held.owner.pid} is gone")
            if not self.is_patient:
                self._refuse_busy(wanted, leases)
            for job, _ in wanted:
                self._queue(job, store)
            self._groups = _group(
                self.running, {running.job_id: devices for running, (_, devices) in zip(self.running, wanted, strict=True)}
            )
            try:
                while any(running.status in ("queued", "running") for running in self.running):
                    self._start_ready(leases, store)
                    self._watch(leases, store)
                    self._renew(leases, store)
                    time.sleep(_POLL_S)
            except BaseException as error:
                why = str(error) if isinstance(error, GpuallocError) else f"the launcher was interrupted ({error or type(error).__name__})"
                self._end_all(leases, store, why, started="lost" if isinstance(error, EngineLostError) else "stopped")
                raise
        return self.running

    def submit(self, jobs: Sequence[Job]) -> list[RunningJob]:
        """Starts the jobs on an engine that goes on without this process, and leaves them to it: nobody starts them again.

        Raises:
            EngineLostError, StoreError: those started before go on.
        """
        with LeaseStore(self.state) as leases, JobStore(self.state) as store:
            for job in jobs:
                self._queue(job, store)
                running = self.running[-1]
                self._start(running, _Group(members=[running], devices=()), leases, store)
        return self.running

    def _refuse_busy(self, wanted: Sequence[tuple[Job, tuple[str, ...]]], leases: LeaseStore) -> None:
        devices = {device for _, names in wanted for device in names}
        if devices:
            leases.release(leases.acquire(sorted(devices), holder="gpualloc run"))

    def _queue(self, job: Job, store: JobStore) -> None:
        assignment = asdict(job.assignment) if job.assignment is not None else {"workload": job.name}
        job_id = store.add(name=job.name, engine=self.engine.name, folder=self.jobs_folder, assignment=assignment)
        folder = self.jobs_folder / f"{job_id}-{job.file_name}"
        try:
            folder.mkdir(mode=0o700, parents=True)  # what a job prints is for its owner
        except OSError as error:
            store.finish(job_id, "failed", f"no folder: {error}")
            raise GpuallocError(f"cannot make {folder} for logs: {error.strerror}; free some space or set --jobs-folder") from error
        store.set_folder(job_id, folder)
        self.running.append(RunningJob(job=job, job_id=job_id, folder=folder))

    def _start_ready(self, leases: LeaseStore, store: JobStore) -> None:
        taken: set[str] = set()  # an earlier job that waits for a device has it before a later one
        for group in self._groups:
            waiting = [running for running in group.members if running.status == "queued"]
            if not waiting:
                continue
            if group.lease is None and group.devices:
                if taken & set(group.devices):
                    continue
                try:
                    group.lease = leases.acquire(
                        group.devices, holder=f"job {waiting[0].job_id} ({waiting[0].job.name})", ttl_s=self.lease_ttl_s
                    )
                except DeviceBusyError as error:
                    taken |= set(group.devices)
                    self._tell_waiting(group, str(error), store)
                    continue
            for running in waiting:
                self._start(running, group, leases, store)

    def _tell_waiting(self, group: _Group, why: str, store: JobStore) -> None:
        if why == group.waits_for:
            return
        group.waits_for = why
        own = {running.job_id for running in self.running if running.attempt is not None}
        for running in group.members:
            store.explain(running.job_id, why)
            if not any(f"held by job {job_id} " in why for job_id in own):  # else it is this run's own order
                self.say(f"{running.job.name}: waits: {why}")

    def _start(self, running: RunningJob, group: _Group, leases: LeaseStore, store: JobStore) -> None:
        running.num_attempts += 1
        attempt_folder(running.folder, running.num_attempts).mkdir(parents=True, exist_ok=True)
        running.attempt = self.engine.start(running.job, running.folder, running.num_attempts)
        running.status = "running"
        if group.lease is not None:
            leases.attach(group.lease, running.attempt.process_ids())
        store.start(running.job_id, reference=running.attempt.reference, attempt=running.num_attempts)
        again = f", attempt {running.num_attempts}" if running.num_attempts > 1 else ""
        self.say(f"{running.job.name}: started as job {running.job_id}{again} ({running.attempt.reference})")

    def _watch(self, leases: LeaseStore, store: JobStore) -> None:
        alive = [running for running in self.running if running.status in ("queued", "running")]
        asked = store.asked_to_stop([running.job_id for running in alive])
        for running in alive:
            if running.job_id in asked and not running.is_stopping:
                self._begin_stop(running, store)
            if running.attempt is None:
                continue
            if time.monotonic() > running.kill_at_s:
                running.attempt.kill()
            ended = running.attempt.poll()
            if ended is not None:
                self._end_attempt(running, ended, store)
        for group in self._groups:
            if group.lease is not None and all(running.status not in ("queued", "running") for running in group.members):
                leases.release(group.lease)
                group.lease = None

    def _begin_stop(self, running: RunningJob, store: JobStore) -> None:
        running.is_stopping = True
        if running.attempt is None:
            self._finish(running, "stopped", "stopped before it started", store)
            return
        self.say(f"{running.job.name}: asked to stop")
        running.attempt.terminate()
        running.kill_at_s = time.monotonic() + self.term_to_kill_s

    def _end_attempt(self, running: RunningJob, ended: Ended, store: JobStore) -> None:
        assert running.attempt is not None
        running.attempt.kill()  # also what a failed attempt has left
        running.attempt = None
        if ended.is_ok:
            self._finish(running, "complete", None, store)
        elif running.is_stopping:
            self._finish(running, "stopped", "stopped as asked", store)
        else:
            store.add_fault(running.job_id, attempt=running.num_attempts, rank=ended.rank, message=ended.message)
            if running.num_attempts <= running.job.max_restarts:
                running.status = "queued"
                self.say(f"{running.job.name}: {ended.message}; starting it again, {running.num_attempts} of {running.job.max_restarts}")
            else:
                after = f" after {running.num_attempts} attempts" if running.num_attempts > 1 else ""
                self._finish(running, "failed", f"{ended.message}{after}", store)

    def _finish(self, running: RunningJob, status: JobStatus, reason: str | None, store: JobStore) -> None:
        running.status, running.reason = status, reason
        store.finish(running.job_id, status, reason)
        self.say(f"{running.job.name}: {status}{f': {reason}' if reason else ''}")
        if self.results is not None:
            try:
                observed.record(self.results, running.job, running.folder, fault=reason if status == "failed" else None)
            except StoreError as error:
                self.say(f"{running.job.name}: its rate is not kept: {error}")

    def _renew(self, leases: LeaseStore, store: JobStore) -> None:
        if time.monotonic() - self._renewed_s < self.lease_ttl_s / _RENEWALS:
            return
        self._renewed_s = time.monotonic()
        for group in self._groups:
            if group.lease is None:
                continue
            pids = [pid for running in group.members if running.attempt is not None for pid in running.attempt.process_ids()]
            try:
                leases.attach(group.lease, pids)
            except LeaseLostError as error:
                group.lease = None
                for running in group.members:
                    if running.attempt is not None:
                        running.attempt.kill()
                        running.attempt = None
                    if running.status in ("queued", "running"):
                        store.add_fault(running.job_id, attempt=running.num_attempts, rank=None, message=str(error))
                        self._finish(running, "failed", str(error), store)

    def _end_all(self, leases: LeaseStore, store: JobStore, why: str, *, started: JobStatus) -> None:
        """SIGTERM, a pause, SIGKILL. What cannot be recorded any more is ended all the same.

        Args:
            started: what becomes of jobs that had started: of an engine that is lost, nobody knows whether they run on.
        """
        alive = [running for running in self.running if running.attempt is not None]
        for running in alive:
            assert running.attempt is not None
            running.attempt.terminate()
        deadline_s = time.monotonic() + self.term_to_kill_s
        while alive and time.monotonic() < deadline_s:
            alive = [running for running in alive if not _has_ended(running)]
            time.sleep(_POLL_S / 4)
        for running in self.running:
            if running.attempt is not None:
                running.attempt.kill()
                running.attempt = None
        for running in self.running:
            if running.status in ("queued", "running"):
                try:
                    self._finish(running, started if running.status == "running" else "stopped", why, store)
                except StoreError as error:
                    self.say(f"{running.job.name}: ended, which cannot be recorded: {error}")
        for group in self._groups:
            if group.lease is not None:
                try:
                    leases.release(group.lease)
                except StoreError:  # it is over with this process anyway
                    group.lease = None


def _has_ended(running: RunningJob) -> bool:
    assert running.attempt is not None
    try:
        return running.attempt.poll() is not None
    except GpuallocError:
        return True


def _group(jobs: Sequence[RunningJob], devices: dict[int, tuple[str, ...]]) -> list[_Group]:
    """Jobs that name each other as sharing a GPU, together; all others alone."""
    groups: list[_Group] = []
    for running in jobs:
        own = devices[running.job_id]
        group = next((each for each in groups if any(member.job.name in running.job.shares_with for member in each.members)), None)
        if group is None:
            groups.append(_Group(members=[running], devices=own))
        else:
            group.members.append(running)
            group.devices = tuple(dict.fromkeys((*group.devices, *own)))
    return groups
