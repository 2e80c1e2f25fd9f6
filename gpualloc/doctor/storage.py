"""Where results and what was watched go, and what runs that were killed left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import psutil

from gpualloc.doctor.finding import Finding
from gpualloc.errors import StoreError
from gpualloc.launch.schema import default_state_path
from gpualloc.store import default_store_path, default_watch_store_path
from gpualloc.store.database import Schema, connect
from gpualloc.store.repair import damage_of

_LOCK_TIMEOUT_S = 1.0
_LEFT_BEHIND_AFTER_S = 86_400.0
_FOLDERS = "gpualloc-*"  # what gpualloc calls its own in the directory for temporary files


@dataclass(frozen=True, kw_only=True)
class KeptFile:
    """A database of ours."""

    name: str
    default_path: Callable[[], Path]
    schema_place: str  # "package.module:name"; read when it is looked at
    variable: str  # names another file
    made_by: str
    counts: str  # the noun and the table of what it holds

    def schema(self) -> Schema:
        module, name = self.schema_place.split(":")
        schema: Schema = getattr(import_module(module), name)
        return schema


RESULTS = KeptFile(
    name="results store",
    default_path=default_store_path,
    schema_place="gpualloc.store.database:RESULTS",
    variable="GPUALLOC_STORE",
    made_by="gpualloc bench",
    counts="runs",
)
WATCH = KeptFile(
    name="watch store",
    default_path=default_watch_store_path,
    schema_place="gpualloc.watching.schema:SCHEMA",
    variable="GPUALLOC_WATCH_STORE",
    made_by="gpualloc watch",
    counts="watches",
)
STATE = KeptFile(
    name="state file",
    default_path=default_state_path,
    schema_place="gpualloc.launch.schema:SCHEMA",
    variable="GPUALLOC_STATE",
    made_by="gpualloc run",
    counts="jobs",
)
KEPT_FILES = (RESULTS, WATCH, STATE)


def check_results_store() -> Finding:
    """Whether the default results file can be read and written and is whole; makes nothing."""
    return check_kept_file(RESULTS)


def check_watch_store() -> Finding:
    """The same of the file in which `gpualloc watch` keeps its samples."""
    return check_kept_file(WATCH)


def check_state_file() -> Finding:
    """The same of the file of leases and jobs."""
    return check_kept_file(STATE)


def check_kept_file(kept: KeptFile) -> Finding:
    path = kept.default_path()
    elsewhere = f"set {kept.variable} to another file"
    if path.exists():
        try:
            connection = connect(path, schema=kept.schema(), create=False, lock_timeout_s=_LOCK_TIMEOUT_S)
            try:
                (count,) = connection.execute(f"SELECT COUNT(*) FROM {kept.counts}").fetchone()
            finally:
                connection.close()
            damage = damage_of(path, kept.schema())
        except StoreError as error:
            return Finding(name=kept.name, status="FAIL", seen=str(error), advice=f"gpualloc doctor --repair keeps a copy; or {elsewhere}")
        except Exception as error:  # of a damaged file, from a query
            damage, count = str(error), 0
        if damage is not None:
            advice = f"rescue what is whole, with a copy of the file kept: gpualloc doctor --repair; or {elsewhere}"
            return Finding(name=kept.name, status="FAIL", seen=f"{path} is damaged: {damage}", advice=advice)
        if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
            return Finding(name=kept.name, status="OK", seen=f"{path}, {kept.counts}: {count}")
        advice = f"make it and its directory writable, or {elsewhere}"
        return Finding(name=kept.name, status="FAIL", seen=f"{path} is not writable", advice=advice)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return Finding(name=kept.name, status="OK", seen=f"{path}, made by the first {kept.made_by}")
    seen = f"{path} cannot be made: {nearest} is not a writable directory"
    return Finding(name=kept.name, status="FAIL", seen=seen, advice=f"set {kept.variable} to a file in a writable directory")


def check_leftovers() -> Finding:
    """Temporary folders of runs that were killed: older than a day and open in no process."""
    folders = _left_behind()
    where = tempfile.gettempdir()
    if not folders:
        return Finding(name="leftovers", status="OK", seen=f"none in {where}")
    num_bytes = sum(file.lstat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    noun = "folder" if len(folders) == 1 else "folders"
    seen = f"{len(folders)} {noun} of killed runs in {where}, {num_bytes / 2**20:.1f} MiB"
    return Finding(name="leftovers", status="WARN", seen=seen, advice="delete them: gpualloc doctor --fix", fix="delete them")


def delete_leftovers() -> str:
    """What `--fix` does about them; says what was done."""
    folders = _left_behind()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    gone = [folder for folder in folders if not folder.exists()]
    return f"{len(gone)} of {len(folders)} folders deleted"


def _left_behind() -> list[Path]:
    """Only this user's, and links never followed."""
    oldest_unix_s = time.time() - _LEFT_BEHIND_AFTER_S
    candidates = []
    for folder in Path(tempfile.gettempdir()).glob(_FOLDERS):
        status = folder.lstat()
        if folder.is_dir() and not folder.is_symlink() and status.st_uid == os.getuid() and status.st_mtime < oldest_unix_s:
            candidates.append(folder)
    if not candidates:
        return []
    opened = _opened_paths()
    return [folder for folder in candidates if not any(path.is_relative_to(folder) for path in opened)]


def _opened_paths() -> set[Path]:
    paths: set[Path] = set()
    for process in psutil.process_iter():
        try:
            paths |= {Path(process.cwd()), *(Path(file.path) for file in process.open_files())}
            paths |= {Path(word) for word in process.cmdline() if _FOLDERS.rstrip("*") in word}
        except (psutil.Error, OSError):
            continue
    return paths
