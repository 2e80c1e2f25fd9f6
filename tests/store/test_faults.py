"""Files that are damaged, locked, full, foreign or newer; writers that die or come in pairs."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpualloc.errors import StoreError
from gpualloc.records import to_json
from gpualloc.store import ResultsStore, database
from tests.store.sample_measurements import GPU_ENVIRONMENT, gpu_run, image_case, measured

WRITER = """
import sys
from pathlib import Path
from gpualloc.store import ResultsStore
from tests.store.sample_measurements import GPU_ENVIRONMENT, image_case, measured
with ResultsStore(Path(sys.argv[1])) as store:
    run_id = store.begin_run(command="writer", options={}, environment=GPU_ENVIRONMENT)
    for seed in range(int(sys.argv[2])):
        store.add(run_id, measured(image_case(seed=seed), 0.1))
        print(run_id, seed, flush=True)
"""


def start_writer(path: Path, count: int) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(count)], stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    """A store whose run 1 holds the sample measurements."""
    with ResultsStore(path) as store:
        run_id = store.begin_run(command="gpualloc bench", options={}, environment=GPU_ENVIRONMENT)
        for measurement in gpu_run():
            store.add(run_id, measurement)
    return path


def edit(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def add_migration(monkeypatch: pytest.MonkeyPatch, statements: tuple[str, ...]) -> None:
    """A gpualloc whose results have schema 2."""
    monkeypatch.setattr(database, "RESULTS", replace(database.RESULTS, migrations=(*database.RESULTS.migrations, statements)))


def add_cases(store: ResultsStore, *, seeds: int) -> int:
    for seed in range(seeds):
        store.add(1, measured(image_case(seed=seed), 0.1))
    return seeds


def read_everything(path: Path) -> None:
    with ResultsStore(path, create=False) as store:
        for run in store.runs():
            store.measurements(run.run_id)


def test_two_processes_write_to_a_new_file_at_once(path: Path) -> None:
    writers = [start_writer(path, 150) for _ in range(2)]
    assert [writer.wait(timeout=60) for writer in writers if writer.communicate()] == [0, 0]
    with ResultsStore(path, create=False) as store:
        assert [len(store.measurements(run.run_id)[0]) for run in store.runs()] == [150, 150]


def test_sigkill_loses_nothing_that_was_committed(path: Path) -> None:
    writer = start_writer(path, 100_000)
    assert writer.stdout is not None
    seen = [writer.stdout.readline() for _ in range(40)]
    writer.send_signal(signal.SIGKILL)
    seen += writer.stdout.readlines()
    writer.wait()
    with ResultsStore(path, create=False) as store:
        measurements, problems = store.measurements(1)
        assert store.run(1).status == "running"
    assert problems == []
    seeds = [row.case.seed for row in measurements]
    assert seeds == list(range(len(seeds)))
    assert len(seeds) >= sum(line.endswith("\n") for line in seen) >= 40


@pytest.mark.parametrize("share_kept", [0.001, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused_by_name(filled: Path, share_kept: float) -> None:
    os.truncate(filled, int(filled.stat().st_size * share_kept))
    with pytest.raises(StoreError, match=r"results\.sqlite cannot be used: .*; move it aside"):
        read_everything(filled)


def test_an_empty_file_is_a_store_without_runs(path: Path) -> None:
    path.touch()
    read_everything(path)
    with ResultsStore(path) as store:
        assert store.begin_run(command="", options={}, environment=GPU_ENVIRONMENT) == 1


def test_text_instead_of_a_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("step_time_s,0.1\n" * 1000)
    with pytest.raises(StoreError, match="not a database; move it aside"):
        ResultsStore(path)
    assert path.read_text() == "step_time_s,0.1\n" * 1000


def test_a_newer_schema_is_refused_with_its_version(filled: Path) -> None:
    edit(filled, "PRAGMA user_version = 99")
    for create in (True, False):
        with pytest.raises(StoreError, match=r"has schema 99, this gpualloc reads up to 1; upgrade gpualloc"):
            ResultsStore(filled, create=create)


def test_another_programs_file_is_refused_and_left_alone(path: Path) -> None:
    edit(path, "CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="of another program"):
        ResultsStore(path)
    assert path.read_bytes() == before


def test_an_older_file_is_migrated_and_keeps_its_rows(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_migration(monkeypatch, ("ALTER TABLE runs ADD COLUMN note TEXT",))
    with ResultsStore(filled, create=False) as store:
        assert len(store.measurements(1)[0]) == len(gpu_run())
    connection = sqlite3.connect(filled)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT note FROM runs").fetchall() == [(None,)]
    connection.close()


def test_a_failed_migration_changes_nothing(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_migration(monkeypatch, ("ALTER TABLE runs ADD COLUMN note TEXT", "no SQL"))
    with pytest.raises(StoreError, match="syntax error"):
        ResultsStore(filled)
    monkeypatch.undo()
    with ResultsStore(filled) as store:
        assert "note" not in {row[1] for row in store._fetch("PRAGMA table_info(runs)")}


@pytest.mark.parametrize("create", [True, False])
def test_a_directory_is_refused(tmp_path: Path, create: bool) -> None:
    with pytest.raises(StoreError, match="use another file with --store"):
        ResultsStore(tmp_path, create=create)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/results\.sqlite cannot be written: .*; use another file with --store"):
        ResultsStore(tmp_path / "file" / "results.sqlite")


def test_a_read_only_directory_can_be_read_and_not_written(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # the tests may run as root, whom permissions do not stop
    with ResultsStore(filled, create=False) as store:
        assert len(store.measurements(1)[0]) == len(gpu_run())
        assert [file.name for file in filled.parent.iterdir()] == [filled.name]  # no -shm, no -wal
        with pytest.raises(StoreError, match=r"readonly database; make the file and its directory writable"):
            store.add(1, measured(image_case(seed=5), 0.1))


def test_a_locked_file_is_read_but_not_written(filled: Path) -> None:
    other = sqlite3.connect(filled, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with ResultsStore(filled, lock_timeout_s=0.05) as store:
        assert len(store.measurements(1)[0]) == len(gpu_run())
        with pytest.raises(StoreError, match="locked; another gpualloc is writing"):
            store.finish_run(1, "complete")
        other.execute("ROLLBACK")
        store.finish_run(1, "complete")
    other.close()


def test_a_full_disk_keeps_what_was_recorded(filled: Path) -> None:
    with ResultsStore(filled) as store:
        store._fetch(f"PRAGMA max_page_count = {store._fetch('PRAGMA page_count')[0][0] + 2}")
        kept = add_cases(store, seeds=2)
        with pytest.raises(StoreError, match="disk is full; free some disk space"):
            add_cases(store, seeds=100)
        assert len(store.measurements(1)[0]) >= len(gpu_run()) - 1 + kept  # seed 0 is one of the sample's cases
    with ResultsStore(filled) as store:
        assert store.measurements(1)[1] == []
        add_cases(store, seeds=100)
        assert len(store.measurements(1)[0]) == len(gpu_run()) - 1 + 100


GOOD = to_json(measured(image_case(), 0.1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (json.dumps(GOOD)[:-40], "not JSON"),
        ("[1, 2]", "a JSON list instead of an object"),
        (b"\xff\xfe not text", "not JSON"),
        (json.dumps({**GOOD, "schema_version": 99}), "schema_version 99"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "case"}), "'case'"),
        (json.dumps({**GOOD, "colour": "red"}), "colour"),
        (json.dumps({**GOOD, "case": {**GOOD["case"], "world_size": "two"}}), "world_size is 'two', expected int"),
        (json.dumps({**GOOD, "step_time_s": True}), "step_time_s is True"),
        (json.dumps({**GOOD, "step_time_s": float("nan")}), "step_time_s is nan, expected a finite number"),
        (json.dumps({**GOOD, "samples_per_s": float("inf")}), "samples_per_s is inf"),
        (json.dumps({**GOOD, "repeat_step_times_s": [0.1, float("nan")]}), "repeat_step_times_s"),
        (json.dumps({**GOOD, "peak_memory_bytes": 10**400}), "expected a finite number"),
        (json.dumps({**GOOD, "step_time_s": None}), "status 'ok' with step_time_s None"),
        (json.dumps({**GOOD, "environment": {"device_name": "H200"}}), "cannot be read"),
        (json.dumps({**GOOD, "case": {**GOOD["case"], "seed": 9}}), "not the one it was recorded under"),
    ],
)
def test_a_damaged_row_is_named_and_the_others_are_read(filled: Path, text: object, why: str) -> None:
    case_key = image_case().key()
    edit(filled, "UPDATE measurements SET measurement = CAST(? AS TEXT) WHERE case_key = ?", text, case_key)
    with ResultsStore(filled) as store:
        measurements, problems = store.measurements(1)
    assert len(measurements) == len(gpu_run()) - 1
    assert len(problems) == 1
    assert f"run 1, case {case_key} in {filled} is damaged" in problems[0]
    assert why in problems[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"device_name": 3}'])
def test_a_run_with_a_damaged_environment_is_still_listed(filled: Path, text: str) -> None:
    edit(filled, "UPDATE runs SET environment = ?, options = ?", text, text)
    with ResultsStore(filled) as store:
        assert store.run(1).environment is None
        assert len(store.measurements(1)[0]) == len(gpu_run())


def test_a_second_connection_leaves_the_first_its_locks(path: Path) -> None:
    """Closing any file descriptor of a file ends all POSIX locks that the process has on it. SQLite's own do not; ours must not be one."""
    look = [
        "import sqlite3, sys",
        "connection = sqlite3.connect(sys.argv[1])",
        "print(connection.execute('SELECT COUNT(*) FROM runs').fetchone()[0])",
    ]

    def runs_seen_by_another_process() -> int:
        done = subprocess.run([sys.executable, "-c", "\n".join([*look, "connection.close()"]), str(path)], capture_output=True, text=True)
        return int(done.stdout)

    with ResultsStore(path) as first, ResultsStore(path):
        assert runs_seen_by_another_process() == 0  # as it leaves, it would delete the log if nobody seemed to hold the file
        first.begin_run(command="", options={}, environment=GPU_ENVIRONMENT)
        assert runs_seen_by_another_process() == 1
