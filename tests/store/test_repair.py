"""A damaged file: what is whole of it is rescued, and it stays beside the new one as it was."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from gpualloc.errors import StoreError
from gpualloc.store import ResultsStore
from gpualloc.store.database import RESULTS
from gpualloc.store.repair import damage_of, repair
from tests.store.sample_measurements import GPU_ENVIRONMENT, gpu_run

NUM_RUNS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 runs of 11 cases: many pages."""
    path = tmp_path_factory.mktemp("made") / "results.sqlite"
    with ResultsStore(path) as results:
        for _ in range(NUM_RUNS):
            run_id = results.begin_run(command="gpualloc bench", options={}, environment=GPU_ENVIRONMENT)
            for row in gpu_run():
                results.add(run_id, row)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path))


def damage(path: Path, *, start: float, num_bytes: int) -> bytes:
    """Overwrites a part of the file; returns it as it is then."""
    data = bytearray(path.read_bytes())
    first = int(start * len(data))
    data[first : first + num_bytes] = b"\xa5" * min(num_bytes, len(data) - first)
    path.write_bytes(data)
    return bytes(data)


def test_a_whole_file_is_left_as_it_is(store: Path) -> None:
    before = store.read_bytes()
    assert damage_of(store, RESULTS) is None
    done = repair(store, RESULTS)
    assert (done.damage, done.copy, store.read_bytes()) == (None, None, before)


def test_pages_overwritten_in_the_middle_cost_what_stood_on_them(store: Path) -> None:
    as_it_was = damage(store, start=0.5, num_bytes=3 * 4096)
    assert damage_of(store, RESULTS) is not None
    done = repair(store, RESULTS)
    assert done.copy is not None
    assert done.copy.read_bytes() == as_it_was
    assert not done.is_complete
    with ResultsStore(store) as results:
        runs = results.runs()
        rows = [results.measurements(run.run_id) for run in runs]
    assert (len(runs), done.rescued_rows["runs"]) == (NUM_RUNS, NUM_RUNS)
    num_cases = sum(len(measurements) for measurements, _ in rows)
    assert NUM_RUNS * 11 * 0.8 < num_cases == done.rescued_rows["measurements"] < NUM_RUNS * 11
    assert all(problems == [] for _, problems in rows)
    assert damage_of(store, RESULTS) is None


@pytest.mark.parametrize("content", [b"not a database, not even one page of it", b"SQLite format 3\0" + b"\xff" * 5000])
def test_of_garbage_nothing_is_rescued_and_the_store_works_again(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    path.write_bytes(content)
    done = repair(path, RESULTS)
    assert done.copy is not None
    assert done.copy.read_bytes() == content
    assert sum(done.rescued_rows.values()) == 0
    with ResultsStore(path) as results:
        assert results.runs() == []
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([path.name, done.copy.name])


def test_a_truncated_file_gives_up_what_is_left(store: Path) -> None:
    store.write_bytes(store.read_bytes()[: store.stat().st_size * 2 // 3])
    done = repair(store, RESULTS)
    assert done.damage is not None
    assert 0 < done.rescued_rows["measurements"] < NUM_RUNS * 11
    assert damage_of(store, RESULTS) is None


def test_two_repairs_keep_two_copies(store: Path) -> None:
    copies = set()
    for _ in range(2):
        damage(store, start=0.5, num_bytes=4096)
        copies.add(repair(store, RESULTS).copy)
    assert len(copies) == 2
    assert all(copy is not None and copy.exists() for copy in copies)


@pytest.mark.parametrize(
    ("statements", "message"),
    [(["PRAGMA user_version = 99"], "has schema 99"), (["PRAGMA application_id = 7", "PRAGMA user_version = 1"], "of another program")],
)
def test_a_newer_schema_and_another_program_are_refused(statements: list[str], message: str, store: Path) -> None:
    connection = sqlite3.connect(store)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    before = store.read_bytes()
    with pytest.raises(StoreError, match=message):
        repair(store, RESULTS)
    assert store.read_bytes() == before


def test_no_file_is_nothing_to_repair(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to repair"):
        repair(tmp_path / "results.sqlite", RESULTS)


def test_a_disk_without_room_for_the_copy_leaves_the_file_alone(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_was = damage(store, start=0.5, num_bytes=4096)

    def fail(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpualloc.store.repair.shutil.copy2", fail)
    with pytest.raises(StoreError, match="No space left"):
        repair(store, RESULTS)
    assert store.read_bytes() == as_it_was
