"""Opens an SQLite file of ours: creation, schema version, migrations, and SQLite's errors in our words."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpualloc.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a file holds and how it is called."""

    noun: str  # in messages: "results store"
    nothing_yet: str  # of a file that is absent: "no results yet", and what makes it
    remedy: str
    application_id: int  # in the file's header: tells our file from any other SQLite file
    migrations: tuple[tuple[str, ...], ...]  # the i-th takes a file from schema i to i + 1; never changed, only added
    synchronous: Literal["FULL", "NORMAL"]  # FULL: a commit survives a power cut; NORMAL: the end of the process

    @property
    def version(self) -> int:
        return len(self.migrations)


_RESULTS_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            run_id INTEGER PRIMARY KEY AUTOINCREMENT,
            started_at_utc TEXT NOT NULL,
            finished_at_utc TEXT,
            status TEXT NOT NULL CHECK (status IN ('running', 'complete', 'interrupted')),
            command TEXT NOT NULL,
            options TEXT NOT NULL,
            options_key TEXT NOT NULL,
            environment TEXT NOT NULL,
            environment_key TEXT NOT NULL
        )""",
        """CREATE TABLE measurements (
            measurement_id INTEGER PRIMARY KEY,
            run_id INTEGER NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
            case_key TEXT NOT NULL,
            status TEXT NOT NULL,
            measurement TEXT NOT NULL,
            recorded_at_utc TEXT NOT NULL,
            UNIQUE (run_id, case_key)
        )""",
    ),
)
RESULTS = Schema(
    noun="results store",
    nothing_yet="no results yet",
    remedy="run gpualloc bench",
    application_id=0x67707561,  # "gpua"
    migrations=_RESULTS_MIGRATIONS,
    synchronous="FULL",
)

_REMEDIES = (  # a part of SQLite's message, what to do
    ("locked", "another gpualloc is writing to it; try again when that has finished, or use another file with --store"),
    ("readonly", "make the file and its directory writable, or use another file with --store"),
    ("unable to open", "check that its directory exists and is writable, or use another file with --store"),
    ("full", "free some disk space; what was recorded before is intact"),
    ("disk i/o", "check the disk and its free space; what was recorded before is intact"),
    ("foreign key", "the run was deleted meanwhile; list the runs with: gpualloc results list"),
)
_DAMAGED = "move it aside, or rescue its rows with the sqlite3 program's .recover"


def connect(path: Path, *, schema: Schema, create: bool, lock_timeout_s: float) -> sqlite3.Connection:
    """An autocommitting connection to a store, brought to the newest version of its schema.

    Raises:
        StoreError: the file is absent (and not to be created), not a store, damaged, of a newer schema, locked or not writable.
    """
    if create:
        _create_file(path, schema)
    elif not path.exists():
        raise StoreError(f"{schema.nothing_yet} at {path}: {schema.remedy}")
    with translated_errors(path, schema):
        connection = sqlite3.connect(_uri(path), uri=True, timeout=lock_timeout_s, isolation_level=None)
        try:
            connection.text_factory = lambda text: text.decode("utf-8", "backslashreplace")  # one bad byte must not hide the other rows
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA synchronous = {schema.synchronous}")
            version = _schema_version(connection, path, schema)
            if create:
                with contextlib.suppress(sqlite3.OperationalError):  # another process switches it now, or the file system cannot
                    connection.execute("PRAGMA journal_mode = WAL")
            if version < schema.version:
                _migrate(connection, path, schema)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def translated_errors(path: Path, schema: Schema) -> Iterator[None]:
    """Turns SQLite's errors into a StoreError that names the file and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        remedy = next((remedy for part, remedy in _REMEDIES if part in str(error).lower()), _DAMAGED)
        raise StoreError(f"the {schema.noun} {path} cannot be used: {error}; {remedy}") from error


def _create_file(path: Path, schema: Schema) -> None:
    """For its user alone. A file that is there is not opened: closing it again would release the locks of this process's other connections
    to it, and the next process to leave would delete the log that they go on writing to (https://sqlite.org/howtocorrupt.html, 2.2)."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise StoreError(f"the {schema.noun} {path} cannot be written: {error.strerror}; use another file with --store") from error


def _uri(path: Path) -> str:
    absolute = path.absolute()
    # In a read-only directory SQLite cannot create the -shm file that reading in WAL mode needs. Nobody can write there either.
    frozen = not os.access(absolute.parent, os.W_OK) and not Path(f"{absolute}-wal").exists()
    return f"{absolute.as_uri()}?mode=rw{'&immutable=1' if frozen else ''}"


def _migrate(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statements in schema.migrations[_schema_version(connection, path, schema) :]:  # asked again: another process may have come first
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.application_id}")
    connection.execute(f"PRAGMA user_version = {schema.version}")
    connection.execute("COMMIT")


def _schema_version(connection: sqlite3.Connection, path: Path, schema: Schema) -> int:
    """The file's schema: 0 when it holds nothing yet."""
    version: int
    # One statement, so that another process that is making the tables is seen either before or after.
    version, application_id, num_tables = connection.execute(
        "SELECT user_version, application_id, (SELECT COUNT(*) FROM sqlite_master) FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if application_id != schema.application_id and (num_tables > 0 or version > 0):
        raise StoreError(f"{path} is an SQLite file of another program; use another file with --store")
    if version > schema.version:
        raise StoreError(
            f"the {schema.noun} {path} has schema {version}, this gpualloc reads up to {schema.version}; upgrade gpualloc to read it"
        )
    return version
