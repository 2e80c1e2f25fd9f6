"""What goes in comes out: runs, measurements, and how a run is found again."""

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from gpualloc.errors import StoreError
from gpualloc.records import to_json
from gpualloc.store import ResultsStore
from tests.store.sample_measurements import CPU_ENVIRONMENT, GPU_ENVIRONMENT, gpu_run, image_case, measured

OPTIONS = {"precisions": ["fp32", "fp16"], "num_steps": 50}


def begin(store: ResultsStore, **changes: object) -> int:
    return store.begin_run(**{"command": "gpualloc bench", "options": OPTIONS, "environment": GPU_ENVIRONMENT, **changes})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made on first use" / "re?sults#1.sqlite"


def test_a_run_comes_back_as_it_was_stored(path: Path) -> None:
    with ResultsStore(path) as store:
        run_id = begin(store)
        for measurement in gpu_run():
            store.add(run_id, measurement)
        store.finish_run(run_id, "complete")
    with ResultsStore(path, create=False) as store:
        measurements, problems = store.measurements(run_id)
        run = store.run(run_id)
    assert problems == []
    assert repr([to_json(row) for row in measurements]) == repr([to_json(row) for row in gpu_run()])  # repr: NaN is not equal to itself
    assert (run.options, run.environment, run.command, run.status) == (OPTIONS, GPU_ENVIRONMENT, "gpualloc bench", "complete")
    assert run.case_counts == {"ok": 8, "failed": 1, "oom": 1, "skipped": 1}
    assert run.finished_at_utc is not None
    assert run.started_at_utc <= run.finished_at_utc


def test_a_repeated_case_replaces_its_row_and_keeps_its_place(path: Path) -> None:
    first, second = measured(image_case(), 0.1), measured(image_case(world_size=4), 0.2)
    with ResultsStore(path) as store:
        run_id, other_run_id = begin(store), begin(store)
        store.add(other_run_id, first)
        store.add(run_id, replace(first, status="failed", reason="rank 0 died"))
        store.add(run_id, second)
        store.add(run_id, first)
        assert store.measurements(run_id)[0] == [first, second]
        assert store.measurements(other_run_id)[0] == [first]


def test_find_run_takes_the_newest_of_same_options_and_environment(path: Path) -> None:
    with ResultsStore(path) as store:
        begin(store)
        newest = begin(store)
        begin(store, options={"num_steps": 51})
        begin(store, environment=CPU_ENVIRONMENT)
        reordered = dict(reversed(OPTIONS.items()))
        at_another_clock = replace(GPU_ENVIRONMENT, sm_clock_mhz=1200, git_revision="0000000-dirty")
        assert store.find_run(options=reordered, environment=at_another_clock) == newest
        assert store.find_run(options={"num_steps": 52}, environment=GPU_ENVIRONMENT) is None


def test_status_follows_finish_and_reopen(path: Path) -> None:
    with ResultsStore(path) as store:
        run_id = begin(store)
        assert (store.run(run_id).status, store.run(run_id).finished_at_utc) == ("running", None)
        store.finish_run(run_id, "interrupted")
        assert store.run(run_id).status == "interrupted"
        store.reopen_run(run_id)
        assert (store.run(run_id).status, store.run(run_id).finished_at_utc) == ("running", None)


def test_delete_removes_one_run_only_and_its_number_is_not_used_again(path: Path) -> None:
    with ResultsStore(path) as store:
        kept, deleted = begin(store), begin(store)
        store.add(kept, measured(image_case(), 0.1))
        store.add(deleted, measured(image_case(), 0.1))
        store.delete_run(deleted)
        assert [run.run_id for run in store.runs()] == [kept]
        assert store.measurements(deleted) == ([], [])
        assert len(store.measurements(kept)[0]) == 1
        assert begin(store) > deleted


def test_an_unknown_run_is_refused_naming_those_there_are(path: Path) -> None:
    with ResultsStore(path) as store:
        with pytest.raises(StoreError, match="run gpualloc bench"):
            store.run()
        for _ in range(12):
            begin(store)
        unknown = [
            lambda: store.run(77),
            lambda: store.finish_run(77, "complete"),
            lambda: store.reopen_run(77),
            lambda: store.delete_run(77),
        ]
        for call in unknown:
            with pytest.raises(StoreError, match=r"no run 77 .* 12, 11, .* 3 and 2 older"):
                call()
        with pytest.raises(StoreError, match="deleted meanwhile"):
            store.add(77, measured(image_case(), 0.1))


def test_hostile_names_are_kept_as_they_are(path: Path) -> None:
    model = "<script>alert(1)</script>'; DROP TABLE runs; -- \x1b[31m \udcff \U0001f980"
    with ResultsStore(path) as store:
        run_id = begin(store, command="gpualloc bench --data /data/\udcff.txt", options={"data": "\udcff"})
        store.add(run_id, measured(image_case(model=model), 0.1))
        assert store.measurements(run_id)[0][0].case.model == model
        assert store.run(run_id).command == "gpualloc bench --data /data/\\udcff.txt"
        assert store.find_run(options={"data": "\udcff"}, environment=GPU_ENVIRONMENT) == run_id


def test_only_the_owner_can_read_the_file(path: Path) -> None:
    previous_umask = os.umask(0)
    try:
        with ResultsStore(path) as store:
            begin(store)
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(previous_umask)
    assert path.name in modes
    assert set(modes.values()) == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_reading_makes_no_file(path: Path) -> None:
    with pytest.raises(StoreError, match=r"no results yet at .*re\?sults#1.sqlite: run gpualloc bench"):
        ResultsStore(path, create=False)
    assert not path.parent.exists()


def test_a_row_is_visible_to_others_as_soon_as_add_returns(path: Path) -> None:
    with ResultsStore(path) as store:
        run_id = begin(store)
        store.add(run_id, measured(image_case(), 0.1))
        other = sqlite3.connect(path)
        assert other.execute("SELECT COUNT(*) FROM measurements").fetchone() == (1,)
        other.close()
