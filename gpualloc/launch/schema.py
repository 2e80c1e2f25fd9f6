"""The tables of the state file: leases of devices, and jobs."""

from __future__ import annotations

import os
from pathlib import Path

from gpualloc.store import database, default_store_path

SCHEMA = database.Schema(
    noun="state file",
    nothing_yet="nothing was run yet",
    remedy="run gpualloc run",
    application_id=0x6770756C,  # "gpul"
    migrations=(
        (
            # A gang is what one owner holds at once. Its number grows and is never used again: the fencing token.
            """CREATE TABLE gangs (
                gang_id INTEGER PRIMARY KEY AUTOINCREMENT,
                holder TEXT NOT NULL,
                num_devices INTEGER NOT NULL,
                pid INTEGER NOT NULL,
                start_ticks INTEGER NOT NULL,
                boot_id TEXT NOT NULL,
                pid_namespace TEXT NOT NULL,
                taken_at_utc TEXT NOT NULL,
                expires_monotonic_s REAL NOT NULL
            )""",
            """CREATE TABLE leases (
                device TEXT PRIMARY KEY,
                gang_id INTEGER NOT NULL REFERENCES gangs (gang_id) ON DELETE CASCADE
            )""",
            "CREATE INDEX leases_by_gang ON leases (gang_id)",
            """CREATE TABLE gang_workers (
                gang_id INTEGER NOT NULL REFERENCES gangs (gang_id) ON DELETE CASCADE,
                pid INTEGER NOT NULL,
                start_ticks INTEGER NOT NULL,
                PRIMARY KEY (gang_id, pid)
            )""",
            """CREATE TABLE jobs (
                job_id INTEGER PRIMARY KEY AUTOINCREMENT,
                name TEXT NOT NULL,
                engine TEXT NOT NULL,
                status TEXT NOT NULL,
                reason TEXT,
                folder TEXT NOT NULL,
                assignment TEXT NOT NULL,
                reference TEXT,
                attempt INTEGER NOT NULL DEFAULT 0,
                is_stop_asked INTEGER NOT NULL DEFAULT 0,
                pid INTEGER NOT NULL,
                start_ticks INTEGER NOT NULL,
                boot_id TEXT NOT NULL,
                pid_namespace TEXT NOT NULL,
                queued_at_utc TEXT NOT NULL,
                started_at_utc TEXT,
                finished_at_utc TEXT
            )""",
            "CREATE INDEX jobs_by_name ON jobs (name)",
            """CREATE TABLE faults (
                fault_id INTEGER PRIMARY KEY,
                job_id INTEGER NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
                at_utc TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                rank INTEGER,
                message TEXT NOT NULL
            )""",
        ),
    ),
    synchronous="FULL",
)


def default_state_path() -> Path:
    """$GPUALLOC_STATE, else state.sqlite beside the results."""
    chosen = os.environ.get("GPUALLOC_STATE")
    return Path(chosen).expanduser() if chosen else default_store_path().with_name("state.sqlite")
