"""Rescues what is whole of a damaged file: it is copied first, then its readable rows are written to a new one that takes its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from gpualloc.errors import StoreError
from gpualloc.store.database import Schema, connect

_BESIDE = ("-wal", "-shm", "-journal")  # SQLite's own files beside a database


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What became of a file."""

    path: Path
    damage: str | None  # None: it was whole and was left as it is
    copy: Path | None  # the file as it was
    rescued_rows: dict[str, int]  # table -> rows
    is_complete: bool  # every table could be read to its end


def damage_of(path: Path, schema: Schema) -> str | None:
    """What SQLite finds wrong with the file, in a line; None where it is whole.

    Raises:
        StoreError: it is locked, of a newer schema, or another program's.
    """
    try:
        connection = _open(path)
    except sqlite3.Error as error:
        return str(error)
    try:
        _refuse_foreign(connection, path, schema)
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
        problems = [line for text in found for line in text.splitlines() if line != "ok" and not line.startswith("*** in")]
        return "; ".join(problems[:3]) or None
    except sqlite3.Error as error:
        if "locked" in str(error) or "busy" in str(error):
            raise StoreError(
                f"the {schema.noun} {path} is locked: another gpualloc is writing; try again when that has finished"
            ) from error
        return str(error)
    finally:
        connection.close()


def repair(path: Path, schema: Schema) -> Repair:
    """Repairs the file if it is damaged; a copy of it as it was stays beside it, whatever happens.

    Raises:
        StoreError: there is no such file, it is in use, of a newer schema or another program's, or the disk is full.
    """
    if not path.exists():
        raise StoreError(f"{schema.nothing_yet} at {path}: nothing to repair")
    damage = damage_of(path, schema)
    if damage is None:
        return Repair(path=path, damage=None, copy=None, rescued_rows={}, is_complete=True)
    copy = _copy_aside(path, schema)
    fresh = path.with_name(f".{path.name}.repaired-{os.getpid()}")
    try:
        connect(fresh, schema=schema, create=True, lock_timeout_s=1.0).close()
        rescued, is_complete = _rescue(path, fresh)
        os.replace(fresh, path)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the {schema.noun} {path} could not be repaired: {error}; as it was: {copy}") from error
    finally:
        for suffix in ("", *_BESIDE):
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    for suffix in _BESIDE:  # of the old file: the new one must not be taken for theirs
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    return Repair(path=path, damage=damage, copy=copy, rescued_rows=rescued, is_complete=is_complete)


def _copy_aside(path: Path, schema: Schema) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    copy = path.with_name(f"{path.name}.damaged-{stamp}")
    try:
        for suffix in ("", *_BESIDE):
            if Path(f"{path}{suffix}").exists():
                shutil.copy2(f"{path}{suffix}", f"{copy}{suffix}")
    except OSError as error:
        raise StoreError(
            f"no copy of the {schema.noun} {path} can be made ({error.strerror}), so it is left as it is; free some space"
        ) from error
    return copy


def _rescue(damaged: Path, fresh: Path) -> tuple[dict[str, int], bool]:
    """(rows by table, whether all tables could be read to their end)."""
    rescued: dict[str, int] = {}
    is_complete = True
    target = sqlite3.connect(fresh, isolation_level=None)
    try:
        source = _open(damaged)
    except sqlite3.Error:
        target.close()
        return rescued, False
    with contextlib.suppress(sqlite3.Error):
        source.execute("PRAGMA writable_schema = ON")  # else a file that was cut off is refused as a whole
    source.text_factory = bytes  # one bad byte must not hide its row
    try:
        target.execute("PRAGMA journal_mode = DELETE")  # one file to move into place
        target.execute("BEGIN")
        tables = [name for (name,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
        for table in tables:
            rescued[table], is_whole = _rescue_table(source, target, table)
            is_complete &= is_whole
        for table, row_id, *_ in target.execute("PRAGMA foreign_key_check").fetchall():  # rows whose parents are lost
            target.execute(f"DELETE FROM {table} WHERE rowid = ?", (row_id,))
            rescued[table] -= 1
        target.execute("COMMIT")
    finally:
        source.close()
        target.close()
    return rescued, is_complete


def _rescue_table(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> tuple[int, bool]:
    """From both ends, so that a damaged page in the middle costs what stands on it."""
    is_whole = True
    wanted = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
    for order in ("", " ORDER BY rowid DESC"):
        try:
            there = {row[1].decode("utf-8", "replace") for row in source.execute(f"PRAGMA table_info({table})")}
            names = ", ".join(name for name in wanted if name in there)
            if not names:
                return 0, False
            rows = source.execute(f"SELECT {names} FROM {table} NOT INDEXED{order}")
            marks = ", ".join("?" * len(names.split(", ")))
            for row in rows:
                values = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in row]
                with contextlib.suppress(sqlite3.IntegrityError):  # a row that breaks the schema's rules is damaged, too
                    target.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", values)
            break
        except sqlite3.DatabaseError:
            is_whole = False
    return int(target.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]), is_whole


def _refuse_foreign(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id not in (0, schema.application_id):
        raise StoreError(f"{path} is an SQLite file of another program; name the {schema.noun} with --store")
    if version > schema.version and application_id == schema.application_id:
        raise StoreError(
            f"the {schema.noun} {path} has schema {version}, this gpualloc reads up to {schema.version}; upgrade gpualloc first"
        )


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0, isolation_level=None)
