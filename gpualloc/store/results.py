"""Runs and their measurements."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from gpualloc.errors import StoreError
from gpualloc.records import Environment, Measurement
from gpualloc.store import database, rows

RunStatus = Literal["running", "complete", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One `gpualloc bench`: what was asked, where, and how far it came."""

    run_id: int
    started_at_utc: str  # ISO 8601
    finished_at_utc: str | None  # None while it runs, or when it was killed
    status: str  # a RunStatus
    command: str
    options: dict[str, Any]  # {} when the row is damaged
    environment: Environment | None  # None when the row is damaged
    case_counts: dict[str, int]  # measurement status -> number of cases


class ResultsStore:
    """The results file, open as long as the `with` block lasts. Each change is committed durably before the call returns.

    Args:
        path: the SQLite file; made with its parent directories where it is missing.
        create: False to read only what is there.
        lock_timeout_s: how long to wait for another process that is writing.

    Raises:
        StoreError: from every method, naming the file and the remedy.
    """

    def __init__(self, path: Path, *, create: bool = True, lock_timeout_s: float = 10.0) -> None:
        self.path = path
        self._connection = database.connect(path, schema=database.RESULTS, create=create, lock_timeout_s=lock_timeout_s)

    def __enter__(self) -> ResultsStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def begin_run(self, *, command: str, options: dict[str, Any], environment: Environment) -> int:
        """Records a run with status "running" and returns its number. `options` holds JSON types only."""
        options_text, options_key = rows.encode_options(options)
        printable_command = command.encode("utf-8", "backslashreplace").decode()  # arguments need not be UTF-8
        values = (_now_utc(), printable_command, options_text, options_key, json.dumps(asdict(environment)), environment.key())
        cursor = self._execute(
            "INSERT INTO runs (started_at_utc, status, command, options, options_key, environment, environment_key)"
            " VALUES (?, 'running', ?, ?, ?, ?, ?)",
            *values,
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def find_run(self, *, options: dict[str, Any], environment: Environment) -> int | None:
        """The newest run that asked for the same options in a comparable environment."""
        found = self._execute(
            "SELECT MAX(run_id) FROM runs WHERE options_key = ? AND environment_key = ?", rows.encode_options(options)[1], environment.key()
        ).fetchone()[0]
        return None if found is None else int(found)

    def reopen_run(self, run_id: int) -> None:
        """Sets a run back to "running", to add what it lacks."""
        self._set_status(run_id, "running", finished_at_utc=None)

    def finish_run(self, run_id: int, status: RunStatus) -> None:
        """Closes a run as "complete" or "interrupted"."""
        self._set_status(run_id, status, finished_at_utc=_now_utc())

    def delete_run(self, run_id: int) -> None:
        """Removes a run with its measurements."""
        self.run(run_id)
        self._execute("DELETE FROM runs WHERE run_id = ?", run_id)

    def add(self, run_id: int, measurement: Measurement) -> None:
        """Records a measurement; an earlier one of the same case in this run is replaced and keeps its place."""
        self._execute(
            "INSERT INTO measurements (run_id, case_key, status, measurement, recorded_at_utc) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (run_id, case_key) DO UPDATE SET status = excluded.status, measurement = excluded.measurement,"
            " recorded_at_utc = excluded.recorded_at_utc",
            run_id,
            measurement.case.key(),
            measurement.status,
            rows.encode_measurement(measurement),
            _now_utc(),
        )

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        counts: dict[int, Counter[str]] = {}
        for run_id, status, count in self._fetch("SELECT run_id, status, COUNT(*) FROM measurements GROUP BY run_id, status"):
            counts.setdefault(run_id, Counter())[status] = count
        columns = "run_id, started_at_utc, finished_at_utc, status, command, options, environment"
        return [
            Run(
                run_id=run_id,
                started_at_utc=started_at_utc,
                finished_at_utc=finished_at_utc,
                status=status,
                command=command,
                options=rows.decode_options(options),
                environment=rows.decode_environment(environment),
                case_counts=dict(counts.get(run_id, {})),
            )
            for run_id, started_at_utc, finished_at_utc, status, command, options, environment in self._fetch(
                f"SELECT {columns} FROM runs ORDER BY run_id DESC"
            )
        ]

    def run(self, run_id: int | None = None) -> Run:
        """One run; the newest for None.

        Raises:
            StoreError: unknown; names the runs there are.
        """
        runs = self.runs()
        if not runs:
            raise StoreError(f"no results yet at {self.path}: run gpualloc bench")
        found = next((run for run in runs if run_id in (None, run.run_id)), None)
        if found is None:
            known = ", ".join(str(run.run_id) for run in runs[:10]) + (f" and {len(runs) - 10} older" if len(runs) > 10 else "")
            raise StoreError(f"no run {run_id} in {self.path}, which holds: {known}; see gpualloc results list")
        return found

    def measurements(self, run_id: int) -> tuple[list[Measurement], list[str]]:
        """(readable measurements in the order they were first added, one message for each row that is damaged)."""
        readable, problems = [], []
        for case_key, text in self._fetch(
            "SELECT case_key, measurement FROM measurements WHERE run_id = ? ORDER BY measurement_id", run_id
        ):
            try:
                measurement = rows.decode_measurement(text)
                if measurement.case.key() != case_key:
                    raise StoreError("its case is not the one it was recorded under")
                readable.append(measurement)
            except StoreError as error:
                problems.append(f"run {run_id}, case {case_key} in {self.path} is damaged and left out: {error}")
        return readable, problems

    def _set_status(self, run_id: int, status: RunStatus, *, finished_at_utc: str | None) -> None:
        self.run(run_id)
        self._execute("UPDATE runs SET status = ?, finished_at_utc = ? WHERE run_id = ?", status, finished_at_utc, run_id)

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        with database.translated_errors(self.path, database.RESULTS):
            return self._connection.execute(statement, values)

    def _fetch(self, statement: str, *values: object) -> list[Any]:
        with database.translated_errors(self.path, database.RESULTS):
            return self._connection.execute(statement, values).fetchall()


def _now_utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
