"""What was watched, in one SQLite file that several `gpualloc watch` may write at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from gpualloc.store import database
from gpualloc.watching.sampler import Overhead
from gpualloc.watching.samples import DeviceSample, ProcessSample
from gpualloc.watching.schema import SCHEMA

_FIGURES = (
    "time_unix_s",
    "covers_s",
    "utilisation_percent",
    "utilisation_readings",
    "memory_used_bytes",
    "memory_total_bytes",
    "power_w",
    "power_limit_w",
    "energy_j",
    "sm_clock_mhz",
    "mem_clock_mhz",
    "temperature_c",
)
_PROCESS_FIGURES = ("gpu_memory_bytes", "sm_utilisation_percent", "cpu_percent", "rss_bytes")
_LARGEST = 1e20  # beyond the sum of any figures
_DELETED_AT_ONCE = 5000  # samples: so long are other writers kept waiting


@dataclass(frozen=True, kw_only=True)
class Watch:
    """One `gpualloc watch`."""

    watch_id: int
    host: str
    pid: int
    started_unix_s: float
    last_sample_unix_s: float | None
    interval_s: float
    num_samples: int
    cpu_time_s: float | None  # what it took itself
    elapsed_s: float | None


class WatchStore:
    """The watch file, open as long as the `with` block lasts.

    Args:
        path: the SQLite file; made with its parent directories where it is missing.
        create: False to read only what is there.
        lock_timeout_s: how long to wait for another process that is writing.

    Raises:
        StoreError: from every method, naming the file and the remedy.
    """

    def __init__(self, path: Path, *, create: bool = True, lock_timeout_s: float = 5.0) -> None:
        self.path = path
        self._connection = database.connect(path, schema=SCHEMA, create=create, lock_timeout_s=lock_timeout_s)
        self._device_ids: dict[tuple[object, ...], int] = {}
        self._process_ids: dict[tuple[object, ...], int] = {}
        self.num_damaged = 0  # of the last `samples`

    def __enter__(self) -> WatchStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def begin_watch(self, *, host: str, interval_s: float) -> int:
        """Records that this process watches and returns the watch's number."""
        with database.translated_errors(self.path, SCHEMA):
            cursor = self._connection.execute(
                "INSERT INTO watches (host, pid, started_unix_s, interval_s) VALUES (?, ?, ?, ?)",
                (host, os.getpid(), time.time(), interval_s),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def add(self, watch_id: int, samples: Sequence[DeviceSample], overhead: Overhead) -> None:
        """Records samples: all of them or, with an error, none."""
        with database.translated_errors(self.path, SCHEMA):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for sample in samples:
                    self._add_sample(sample)
                self._connection.execute(
                    "UPDATE watches SET num_samples = num_samples + ?, last_sample_unix_s = MAX(COALESCE(last_sample_unix_s, 0), ?),"
                    " cpu_time_s = ?, elapsed_s = ? WHERE watch_id = ?",
                    (len(samples), max(row.time_unix_s for row in samples), overhead.cpu_time_s, overhead.elapsed_s, watch_id),
                )
                self._connection.execute("COMMIT")
                self._forget_all_but(samples)
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._device_ids.clear()  # rows made in this transaction are gone
                self._process_ids.clear()
                raise

    def samples(self, *, since_unix_s: float = 0.0, until_unix_s: float = float("inf")) -> Iterator[DeviceSample]:
        """Samples from `since` to before `until`, device by device and in the order of time; damaged ones are left out and counted."""
        self.num_damaged = 0
        with database.translated_errors(self.path, SCHEMA):
            self._connection.execute("BEGIN")  # one state of the file for all queries
            try:
                for device_id, *device in self._connection.execute(
                    "SELECT device_id, host, kind, uuid, device_index, name FROM devices ORDER BY kind = 'cpu', host, device_id"
                ).fetchall():
                    yield from self._samples_of(device_id, device, since_unix_s, until_unix_s)
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _samples_of(self, device_id: int, device: Sequence[Any], since_unix_s: float, until_unix_s: float) -> Iterator[DeviceSample]:
        which = "WHERE device_id = ? AND time_unix_s >= ? AND time_unix_s < ? ORDER BY time_unix_s, sample_id"
        values = (device_id, since_unix_s, until_unix_s)
        rows = self._connection.execute(
            f"SELECT sample_id, {', '.join(_FIGURES)}, throttle_reasons, are_processes_known FROM samples {which}", values
        )
        process_rows = self._connection.execute(
            f"SELECT sample_id, pid, processes.started_unix_s, user, command, {', '.join(_PROCESS_FIGURES)}"
            f" FROM samples JOIN process_samples USING (sample_id) JOIN processes USING (process_id) {which}, process_id",
            values,
        )
        groups = groupby(process_rows, key=lambda row: row[0])
        group = next(groups, None)
        for sample_id, *row in rows:
            on_device: list[Any] = []
            if group is not None and group[0] == sample_id:
                on_device = list(group[1])
                group = next(groups, None)
            try:
                sample = _sample(row, device, [_process(process_row) for process_row in on_device])
            except (ValueError, TypeError):
                self.num_damaged += 1
                continue
            yield sample

    def watches(self) -> list[Watch]:
        """All watches whose samples may still be there, newest first."""
        with database.translated_errors(self.path, SCHEMA):
            rows = self._connection.execute(
                "SELECT watch_id, host, pid, started_unix_s, last_sample_unix_s, interval_s, num_samples, cpu_time_s, elapsed_s"
                " FROM watches ORDER BY watch_id DESC"
            ).fetchall()
        names = Watch.__dataclass_fields__
        return [Watch(**dict(zip(names, row, strict=True))) for row in rows]

    def prune(self, *, before_unix_s: float) -> int:
        """Deletes what is older, in portions that let other writers in between; returns the number of samples."""
        num_deleted = 0
        with database.translated_errors(self.path, SCHEMA):
            for (device_id,) in self._connection.execute("SELECT device_id FROM devices").fetchall():
                while True:
                    num_gone = self._connection.execute(
                        "DELETE FROM samples WHERE sample_id IN"
                        " (SELECT sample_id FROM samples WHERE device_id = ? AND time_unix_s < ? LIMIT ?)",
                        (device_id, before_unix_s, _DELETED_AT_ONCE),
                    ).rowcount
                    num_deleted += num_gone
                    if num_gone < _DELETED_AT_ONCE:
                        break
            if num_deleted:
                self._connection.execute("DELETE FROM processes WHERE process_id NOT IN (SELECT process_id FROM process_samples)")
                self._process_ids.clear()
            self._connection.execute("DELETE FROM watches WHERE last_sample_unix_s < ?", (before_unix_s,))
        return num_deleted

    def _add_sample(self, sample: DeviceSample) -> None:
        values = [getattr(sample, name) for name in _FIGURES]
        reasons = None if sample.throttle_reasons is None else json.dumps(sample.throttle_reasons)
        cursor = self._connection.execute(
            f"INSERT INTO samples (device_id, {', '.join(_FIGURES)}, throttle_reasons, are_processes_known)"
            f" VALUES ({', '.join('?' * (len(_FIGURES) + 3))})",
            (self._device_id(sample), *values, reasons, sample.processes is not None),
        )
        for process in sample.processes or ():
            self._connection.execute(
                f"INSERT INTO process_samples (sample_id, process_id, {', '.join(_PROCESS_FIGURES)}) VALUES (?, ?, ?, ?, ?, ?)",
                (cursor.lastrowid, self._process_id(sample.host, process), *(getattr(process, name) for name in _PROCESS_FIGURES)),
            )

    def _forget_all_but(self, samples: Sequence[DeviceSample]) -> None:
        """A process that is not sampled any more may be pruned by another writer; its number here must not outlive it."""
        present = {_key(sample.host, process) for sample in samples for process in sample.processes or ()}
        self._process_ids = {key: process_id for key, process_id in self._process_ids.items() if key in present}

    def _device_id(self, sample: DeviceSample) -> int:
        key = (sample.device_uuid, sample.host, sample.kind, sample.device_index, sample.device_name)
        if key not in self._device_ids:
            found = self._connection.execute(  # a GPU may move to another host or place
                "INSERT INTO devices (uuid, host, kind, device_index, name) VALUES (?, ?, ?, ?, ?) ON CONFLICT (uuid) DO UPDATE SET"
                " host = excluded.host, kind = excluded.kind, device_index = excluded.device_index, name = excluded.name"
                " RETURNING device_id",
                key,
            ).fetchone()
            self._device_ids[key] = int(found[0])
        return self._device_ids[key]

    def _process_id(self, host: str, process: ProcessSample) -> int:
        key = _key(host, process)
        if key not in self._process_ids:
            found = self._connection.execute(
                "SELECT process_id FROM processes WHERE host IS ? AND pid IS ? AND started_unix_s IS ? AND user IS ? AND command IS ?", key
            ).fetchone()
            if found is None:
                found = self._connection.execute(
                    "INSERT INTO processes (host, pid, started_unix_s, user, command) VALUES (?, ?, ?, ?, ?) RETURNING process_id", key
                ).fetchone()
            self._process_ids[key] = int(found[0])
        return self._process_ids[key]


def _key(host: str, process: ProcessSample) -> tuple[object, ...]:
    return (host, process.pid, process.started_unix_s, process.user, process.command)


def _sample(row: Sequence[Any], device: Sequence[Any], processes: list[ProcessSample]) -> DeviceSample:
    """Raises: ValueError, TypeError: a file may be edited or damaged, and SQLite takes any value in any column."""
    *values, reasons, are_processes_known = row
    _check_numbers(values)
    host, kind, uuid, index, name = device
    return DeviceSample(
        **dict(zip(_FIGURES, values, strict=True)),
        throttle_reasons=None if reasons is None else _decode_reasons(reasons),
        processes=tuple(processes) if are_processes_known else None,
        host=host,
        kind=kind,
        device_uuid=uuid,
        device_index=index,
        device_name=name,
    )


def _check_numbers(values: Iterable[Any]) -> None:
    # What is no number cannot be added up, and one that is infinite or not a number shows in the sum. A loop would take most of a report.
    if not abs(sum(filter(None, values))) < _LARGEST:
        raise ValueError(f"figures {values}")


@lru_cache(maxsize=256)
def _decode_reasons(text: str) -> tuple[str, ...]:
    return tuple(map(str, json.loads(text)))


def _process(row: Sequence[Any]) -> ProcessSample:
    _, pid, started_unix_s, user, command, gpu_memory_bytes, sm_utilisation_percent, cpu_percent, rss_bytes = row
    _check_numbers([pid, started_unix_s, gpu_memory_bytes, sm_utilisation_percent, cpu_percent, rss_bytes])
    return ProcessSample(
        pid=pid,
        started_unix_s=started_unix_s,
        user=user,
        command=command,
        gpu_memory_bytes=gpu_memory_bytes,
        sm_utilisation_percent=sm_utilisation_percent,
        cpu_percent=cpu_percent,
        rss_bytes=rss_bytes,
    )
