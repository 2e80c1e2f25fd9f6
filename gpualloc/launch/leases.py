"""Leases: which process holds which GPUs of this machine. Two never hold one, and a gang gets all it asks for or nothing.

A lease is over when its owner gives it back or dies, or has not renewed it in time. The processes that the owner attached to the lease
are then killed, and gone, before anybody else gets the devices: a launcher that hangs cannot leave a job behind on a GPU that is
leased again. Deadlines are by the monotonic clock, which no clock step moves; after a reboot no lease of before holds.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from gpualloc.errors import GpuallocError, StoreError
from gpualloc.launch.local_files import refuse_network_file_system
from gpualloc.launch.process import ProcessId, identify, this_process
from gpualloc.launch.schema import SCHEMA
from gpualloc.store import database

DEFAULT_TTL_S = 60.0
_KILL_WAIT_S = 10.0
_MAX_ATTEMPTS = 50  # to take devices that others give up and take meanwhile


class DeviceBusyError(GpuallocError):
    """Another process holds a device that is wanted; the message says which and who."""


class LeaseLostError(GpuallocError):
    """The lease ran out and the devices may be another's; whatever runs on them must end."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A gang of devices that this process holds."""

    token: int  # grows with every lease ever taken from this file
    devices: tuple[str, ...]
    ttl_s: float


@dataclass(frozen=True, kw_only=True)
class HeldLease:
    """A gang of devices as the file has it."""

    token: int
    holder: str
    devices: tuple[str, ...]
    num_devices: int  # as when it was taken
    owner: ProcessId
    taken_at_utc: str
    expires_in_s: float
    workers: tuple[ProcessId, ...]

    @property
    def is_over(self) -> bool:
        """Its owner is gone, or has not renewed it. Nobody can see from here whether an owner in another container lives."""
        is_dead = self.owner.is_visible and not self.owner.is_alive
        return is_dead or self.owner.boot_id != this_process().boot_id or self.expires_in_s <= 0


class LeaseStore:
    """The leases in the state file, open as long as the `with` block lasts.

    Args:
        path: on a disk of this machine; made with its parent directories where it is missing.
        create: False to read only what is there.

    Raises:
        StoreError: from every method, naming the file and the remedy.
    """

    def __init__(self, path: Path, *, create: bool = True, lock_timeout_s: float = 10.0) -> None:
        refuse_network_file_system(path)
        self.path = path
        self._connection = database.connect(path, schema=SCHEMA, create=create, lock_timeout_s=lock_timeout_s)

    def __enter__(self) -> LeaseStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def acquire(self, devices: Sequence[str], *, holder: str, ttl_s: float = DEFAULT_TTL_S) -> Lease:
        """All of the devices, or none of them. Leases that are over are cleared away first, and their processes killed.

        Args:
            devices: names that are the same for every process of the machine.
            holder: in words, for messages to others.
            ttl_s: the lease is over when it has not been renewed for so long.

        Raises:
            DeviceBusyError: one is held.
            StoreError: processes of a lease that is over cannot be killed.
        """
        wanted = tuple(dict.fromkeys(devices))
        for _ in range(_MAX_ATTEMPTS):
            for held in self._held(wanted):
                if not held.is_over:
                    raise DeviceBusyError(_describe_busy(held, wanted))
                self._clear(held)
            lease = self._insert(wanted, holder, ttl_s)
            if lease is not None:
                return lease
        raise DeviceBusyError(f"{', '.join(wanted)} changed hands {_MAX_ATTEMPTS} times meanwhile; try again")

    def renew(self, lease: Lease) -> None:
        """Raises:
        LeaseLostError: it was over and has been cleared away.
        """
        with self._transaction():
            row = self._connection.execute("SELECT expires_monotonic_s FROM gangs WHERE gang_id = ?", (lease.token,)).fetchone()
            # One that ran out but was not cleared away has been nobody else's: it goes on.
            if row is not None:
                self._connection.execute(
                    "UPDATE gangs SET expires_monotonic_s = ? WHERE gang_id = ?", (time.monotonic() + lease.ttl_s, lease.token)
                )
        if row is None:
            raise LeaseLostError(
                f"the lease of {', '.join(lease.devices)} was not renewed for {lease.ttl_s:g} s and has been cleared away; run it again"
            )

    def attach(self, lease: Lease, pids: Iterable[int]) -> None:
        """Renews the lease, and names processes that work on the devices and must be gone before another lease holds.

        Raises:
            LeaseLostError: as `renew`.
        """
        workers = [worker for pid in pids if (worker := identify(pid)) is not None]
        self.renew(lease)
        with self._transaction():
            self._connection.executemany(  # of a lease that is lost since: nothing
                "INSERT OR REPLACE INTO gang_workers (gang_id, pid, start_ticks) SELECT gang_id, ?, ? FROM gangs WHERE gang_id = ?",
                [(worker.pid, worker.start_ticks, lease.token) for worker in workers],
            )

    def release(self, lease: Lease) -> None:
        """Gives the devices back; nothing happens where the lease is over."""
        with self._transaction():
            self._connection.execute("DELETE FROM gangs WHERE gang_id = ?", (lease.token,))

    def held(self) -> list[HeldLease]:
        """All leases in the file, those that are over included."""
        return self._held(None)

    def clear_stale(self) -> list[HeldLease]:
        """Clears away the leases that are over, their processes killed, and returns them."""
        stale = [held for held in self.held() if held.is_over]
        for held in stale:
            self._clear(held)
        return stale

    def _held(self, devices: Sequence[str] | None) -> list[HeldLease]:
        with database.translated_errors(self.path, SCHEMA):
            self._connection.execute("BEGIN")
            try:
                gangs = self._connection.execute(
                    "SELECT gang_id, holder, num_devices, pid, start_ticks, boot_id, pid_namespace, taken_at_utc, expires_monotonic_s"
                    " FROM gangs"
                ).fetchall()
                leased: dict[int, list[str]] = {}
                for gang_id, device in self._connection.execute("SELECT gang_id, device FROM leases ORDER BY rowid"):
                    leased.setdefault(gang_id, []).append(device)
                workers: dict[int, list[tuple[int, int]]] = {}
                for gang_id, pid, start_ticks in self._connection.execute("SELECT gang_id, pid, start_ticks FROM gang_workers"):
                    workers.setdefault(gang_id, []).append((pid, start_ticks))
            finally:
                self._connection.execute("COMMIT")
        found = []
        for gang_id, holder, num_devices, pid, start_ticks, boot_id, pid_namespace, taken_at_utc, expires_s in gangs:
            of_gang = leased.get(gang_id, [])
            if devices is not None and not set(of_gang) & set(devices):
                continue
            place = {"boot_id": boot_id, "pid_namespace": pid_namespace}
            found.append(
                HeldLease(
                    token=gang_id,
                    holder=holder,
                    devices=tuple(of_gang),
                    num_devices=num_devices,
                    owner=ProcessId(pid=pid, start_ticks=start_ticks, **place),
                    taken_at_utc=taken_at_utc,
                    expires_in_s=expires_s - time.monotonic(),
                    workers=tuple(ProcessId(pid=pid, start_ticks=ticks, **place) for pid, ticks in workers.get(gang_id, [])),
                )
            )
        return found

    def _clear(self, held: HeldLease) -> None:
        """Kills what the lease's owner started, then deletes it, unless it was renewed meanwhile."""
        with self._transaction():  # its owner cannot renew or attach from here on
            row = self._connection.execute("SELECT expires_monotonic_s FROM gangs WHERE gang_id = ?", (held.token,)).fetchone()
            if row is None or not replace(held, expires_in_s=row[0] - time.monotonic()).is_over:
                return
            workers = [
                replace(held.owner, pid=pid, start_ticks=ticks)
                for pid, ticks in self._connection.execute("SELECT pid, start_ticks FROM gang_workers WHERE gang_id = ?", (held.token,))
            ]
            for worker in workers:
                try:
                    worker.kill()
                except PermissionError:
                    raise StoreError(
                        f"the lease of {', '.join(held.devices)} is over but process {worker.pid} of it runs on and is another user's; "
                        f"end it first: sudo kill -9 {worker.pid}"
                    ) from None
            for worker in workers:
                if not worker.wait(_KILL_WAIT_S):
                    raise StoreError(
                        f"process {worker.pid}, whose lease is over, does not end on SIGKILL; look at it with: ps {worker.pid}"
                    )
            self._connection.execute("DELETE FROM gangs WHERE gang_id = ?", (held.token,))

    def _insert(self, devices: tuple[str, ...], holder: str, ttl_s: float) -> Lease | None:
        """None where another process has taken one of the devices since it was looked at."""
        owner = this_process()
        marks = ", ".join("?" * len(devices))
        with self._transaction():
            if self._connection.execute(f"SELECT 1 FROM leases WHERE device IN ({marks})", devices).fetchone() is not None:
                return None
            cursor = self._connection.execute(
                "INSERT INTO gangs (holder, num_devices, pid, start_ticks, boot_id, pid_namespace, taken_at_utc, expires_monotonic_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    holder,
                    len(devices),
                    owner.pid,
                    owner.start_ticks,
                    owner.boot_id,
                    owner.pid_namespace,
                    datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    time.monotonic() + ttl_s,
                ),
            )
            assert cursor.lastrowid is not None
            self._connection.executemany(
                "INSERT INTO leases (device, gang_id) VALUES (?, ?)", [(device, cursor.lastrowid) for device in devices]
            )
        return Lease(token=cursor.lastrowid, devices=devices, ttl_s=ttl_s)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with database.translated_errors(self.path, SCHEMA):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise


def _describe_busy(held: HeldLease, wanted: Sequence[str]) -> str:
    shared = [device for device in held.devices if device in wanted]
    return (
        f"{', '.join(shared)} {'is' if len(shared) == 1 else 'are'} held by {held.holder} (process {held.owner.pid}, since "
        f"{held.taken_at_utc}); wait for it, or stop it with: gpualloc stop"
    )
