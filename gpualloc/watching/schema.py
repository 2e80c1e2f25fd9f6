"""The tables of the watch store."""

from __future__ import annotations

from gpualloc.store import database

SCHEMA = database.Schema(
    noun="watch store",
    nothing_yet="nothing was watched yet",
    remedy="run gpualloc watch",
    application_id=0x67707577,  # "gpuw"
    migrations=(
        (
            """CREATE TABLE watches (
                watch_id INTEGER PRIMARY KEY AUTOINCREMENT,
                host TEXT NOT NULL,
                pid INTEGER NOT NULL,
                started_unix_s REAL NOT NULL,
                last_sample_unix_s REAL,
                interval_s REAL NOT NULL,
                num_samples INTEGER NOT NULL DEFAULT 0,
                cpu_time_s REAL,
                elapsed_s REAL
            )""",
            """CREATE TABLE devices (
                device_id INTEGER PRIMARY KEY,
                uuid TEXT NOT NULL UNIQUE,
                host TEXT NOT NULL,
                kind TEXT NOT NULL CHECK (kind IN ('gpu', 'mig', 'cpu')),
                device_index INTEGER,
                name TEXT NOT NULL
            )""",
            """CREATE TABLE processes (
                process_id INTEGER PRIMARY KEY,
                host TEXT NOT NULL,
                pid INTEGER NOT NULL,
                started_unix_s REAL,
                user TEXT,
                command TEXT
            )""",
            "CREATE INDEX processes_by_pid ON processes (pid)",
            """CREATE TABLE samples (
                sample_id INTEGER PRIMARY KEY,
                device_id INTEGER NOT NULL REFERENCES devices (device_id),
                time_unix_s REAL NOT NULL,
                covers_s REAL,
                utilisation_percent REAL,
                utilisation_readings INTEGER,
                memory_used_bytes INTEGER,
                memory_total_bytes INTEGER,
                power_w REAL,
                power_limit_w REAL,
                energy_j REAL,
                sm_clock_mhz INTEGER,
                mem_clock_mhz INTEGER,
                temperature_c INTEGER,
                throttle_reasons TEXT,
                are_processes_known INTEGER NOT NULL
            )""",
            "CREATE INDEX samples_by_device ON samples (device_id, time_unix_s)",
            """CREATE TABLE process_samples (
                sample_id INTEGER NOT NULL REFERENCES samples (sample_id) ON DELETE CASCADE,
                process_id INTEGER NOT NULL,
                gpu_memory_bytes INTEGER,
                sm_utilisation_percent REAL,
                cpu_percent REAL,
                rss_bytes INTEGER,
                PRIMARY KEY (sample_id, process_id)
            ) WITHOUT ROWID""",
        ),
    ),
    synchronous="NORMAL",  # a sample every few seconds: the last ones may go with a power cut, none with the process
)
