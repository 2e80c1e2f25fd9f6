"""A store that fails while it is watched: nothing is lost, and it is told."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from gpualloc.errors import StoreError
from gpualloc.watching import WatchStore, recorder
from gpualloc.watching.recorder import Recorder
from tests.watching.made_samples import GPU, series
from tests.watching.test_store import OVERHEAD, read, write


def open_recorder(path: Path, keep_days: float | None = None) -> Recorder:
    return Recorder(path, host="node1", interval_s=5.0, keep_days=keep_days)


def test_what_a_locked_store_did_not_take_is_offered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_LOCK_TIMEOUT_S", 0.05)
    samples = series((25, 50.0))
    recording = open_recorder(tmp_path / "watch.sqlite")
    recording.record(samples[:1], OVERHEAD)
    other = sqlite3.connect(recording.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recording.record(samples[1:2], OVERHEAD)
    recording.record(samples[2:4], OVERHEAD)
    assert "locked; another gpualloc is writing" in (recording.problem or "")
    assert (recording.num_recorded, recording.num_waiting) == (1, 3)
    other.execute("ROLLBACK")
    other.close()
    recording.record(samples[4:], OVERHEAD)
    recording.close()
    assert (recording.problem, recording.num_recorded, recording.num_waiting, recording.num_dropped) == (None, 5, 0, 0)
    assert read(recording.path) == samples


def test_the_oldest_leave_when_too_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MAX_WAITING", 3)
    recording = open_recorder(tmp_path / "watch.sqlite")
    recording._store._connection.execute("PRAGMA query_only = ON")
    for sample in series((25, 50.0)):
        recording.record([sample], OVERHEAD)
    assert "readonly" in (recording.problem or "")
    assert (recording.num_waiting, recording.num_dropped) == (3, 2)
    recording.close()


def test_what_is_older_than_the_days_to_keep_goes_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "watch.sqlite"
    now_unix_s = time.time()
    ages_s = (3 * 86400, 1.5 * 86400, 3600)
    write(path, [GPU.__class__(**{**vars(GPU), "time_unix_s": now_unix_s - age_s}) for age_s in ages_s])
    open_recorder(path).close()
    assert len(read(path)) == 3
    open_recorder(path, keep_days=2.0).close()
    assert [round(now_unix_s - row.time_unix_s) for row in read(path)] == [129600, 3600]


def test_a_store_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"the watch store .* cannot be written"):
        open_recorder(tmp_path / "file" / "watch.sqlite")
    with WatchStore(tmp_path / "watch.sqlite") as store:
        assert store.watches() == []
