"""What goes in comes out; writers in pairs, writers that die, files that are full, damaged, newer or another's."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpualloc.errors import StoreError
from gpualloc.store import ResultsStore
from gpualloc.watching import DeviceSample, WatchStore
from gpualloc.watching.sampler import Overhead
from tests.watching.made_samples import GPU, HOST, START_UNIX_S, process, series

ROOT = Path(__file__).parents[2]
OVERHEAD = Overhead(cpu_time_s=0.5, elapsed_s=100.0, rss_bytes=10**7)
WRITER = """
import sys
from pathlib import Path
from dataclasses import replace
from gpualloc.watching import WatchStore
from tests.watching.made_samples import GPU, HOST, process
from tests.watching.test_store import OVERHEAD
with WatchStore(Path(sys.argv[1])) as store:
    watch_id = store.begin_watch(host="node1", interval_s=5.0)
    for number in range(int(sys.argv[2])):
        at = {"time_unix_s": 1e9 + number, "sm_clock_mhz": watch_id}
        store.add(watch_id, [replace(GPU, **at, processes=(process(number % 7),)), replace(HOST, **at)], OVERHEAD)
        print(number, flush=True)
"""


def start_writer(path: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(count)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made on first use" / "watch.sqlite"


def write(path: Path, samples: list[DeviceSample]) -> None:
    with WatchStore(path) as store:
        watch_id = store.begin_watch(host="node1", interval_s=5.0)
        for sample in samples:
            store.add(watch_id, [sample], OVERHEAD)


def read(path: Path, **window: float) -> list[DeviceSample]:
    with WatchStore(path, create=False) as store:
        return list(store.samples(**window))


def edit(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_samples_come_back_device_by_device(path: Path) -> None:
    first = series((30, 50.0), processes=(process(1), process(2, None, command=None, gpu_memory_bytes=None)))
    second = series((30, None), device_uuid="GPU-1111", device_index=1, processes=None, throttle_reasons=None, power_w=None)
    host = series((30, 3.0), of=HOST, processes=(process(3, started_unix_s=None),))
    write(path, [sample for rows in zip(host, second, first, strict=True) for sample in rows])
    assert read(path) == [*second, *first, *host]  # the host is last, devices as they were first seen


def test_a_window_is_from_since_to_before_until(path: Path) -> None:
    samples = series((60, 50.0))
    write(path, samples)
    assert read(path, since_unix_s=START_UNIX_S + 10, until_unix_s=START_UNIX_S + 20) == samples[1:3]


def test_a_watch_tells_its_overhead(path: Path) -> None:
    write(path, series((30, 50.0)))
    with WatchStore(path, create=False) as store:
        (watch,) = store.watches()
    assert (watch.num_samples, watch.cpu_time_s, watch.elapsed_s, watch.interval_s) == (6, 0.5, 100.0, 5.0)
    assert watch.last_sample_unix_s == START_UNIX_S + 30


def test_a_gpu_that_moves_is_the_same_gpu(path: Path) -> None:
    write(path, series((10, 50.0)))
    write(path, series((10, 50.0), start_s=10, host="node2", device_index=3))
    assert {(row.device_uuid, row.host, row.device_index) for row in read(path)} == {("GPU-0000", "node2", 3)}


def test_processes_are_kept_once_however_many_write(path: Path) -> None:
    for start_s in (0.0, 100.0):
        write(path, series((60, 50.0), start_s=start_s, processes=(process(1), process(2, None))))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT COUNT(*) FROM processes").fetchone() == (2,)
    connection.close()


def test_two_processes_write_to_a_new_file_at_once(path: Path) -> None:
    writers = [start_writer(path, 150) for _ in range(2)]
    assert [writer.wait(timeout=60) for writer in writers if writer.communicate()] == [0, 0]
    samples = read(path)
    for watch_id in (1, 2):
        for kind in ("gpu", "cpu"):
            times = [row.time_unix_s for row in samples if (row.kind, row.sm_clock_mhz) == (kind, watch_id)]
            assert times == [1e9 + number for number in range(150)]
    assert [[one.pid for one in row.processes or ()] for row in samples if row.sm_clock_mhz == 1 and row.kind == "gpu"] == [
        [number % 7] for number in range(150)
    ]


def test_sigkill_loses_nothing_that_was_committed(path: Path) -> None:
    writer = start_writer(path, 1_000_000)
    assert writer.stdout is not None
    seen = [writer.stdout.readline() for _ in range(40)]
    writer.send_signal(signal.SIGKILL)
    seen += writer.stdout.readlines()
    writer.wait()
    samples = read(path)
    gpu = [row.time_unix_s - 1e9 for row in samples if row.kind == "gpu"]
    assert gpu == [row.time_unix_s - 1e9 for row in samples if row.kind == "cpu"] == list(range(len(gpu)))
    assert len(gpu) >= sum(line.endswith("\n") for line in seen) >= 40
    write(path, series((5, 50.0)))  # and the file goes on


def test_a_full_disk_keeps_what_was_recorded_and_half_of_nothing(path: Path) -> None:
    write(path, series((60, 50.0)))
    with WatchStore(path) as store:
        watch_id = store.begin_watch(host="node1", interval_s=5.0)
        limit = store._connection.execute("PRAGMA page_count").fetchone()[0] + 4
        store._connection.execute(f"PRAGMA max_page_count = {limit}")
        num_added, at_s = 0, 60

        def fill() -> None:
            nonlocal num_added, at_s
            for _ in range(1000):
                on_gpu = series((5, 50.0), start_s=at_s, processes=(process(at_s),))
                store.add(watch_id, [*on_gpu, replace(HOST, time_unix_s=at_s)], OVERHEAD)
                num_added, at_s = num_added + 1, at_s + 5

        with pytest.raises(StoreError, match=r"the watch store .* disk is full; free some disk space"):
            fill()
        assert 0 < num_added < 1000
        store._connection.execute(f"PRAGMA max_page_count = {limit + 1000}")
        store.add(watch_id, series((5, 77.0), start_s=at_s, processes=(process(at_s),)), OVERHEAD)  # with the process that was rolled back
    samples = [row for row in read(path) if row.kind == "gpu"]
    assert len(samples) == 12 + num_added + 1
    assert (samples[-1].utilisation_percent, samples[-1].processes) == (77.0, (process(at_s),))
    assert len(read(path)) == 12 + 2 * num_added + 1


def test_a_locked_file_is_refused_by_name(path: Path) -> None:
    write(path, series((5, 50.0)))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with WatchStore(path, lock_timeout_s=0.05) as store:
        with pytest.raises(StoreError, match="locked; another gpualloc is writing"):
            store.add(1, series((5, 50.0)), OVERHEAD)
        other.execute("ROLLBACK")
        store.add(1, series((5, 50.0), start_s=5), OVERHEAD)
    other.close()
    assert len(read(path)) == 2


def test_old_samples_are_pruned_with_their_processes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpualloc.watching.store._DELETED_AT_ONCE", 4)
    old, new = series((50, 50.0), processes=(process(1),)), series((50, 50.0), start_s=50, processes=(process(2),))
    write(path, [*old, *new, replace(HOST, time_unix_s=START_UNIX_S)])
    with WatchStore(path) as store:
        assert store.prune(before_unix_s=START_UNIX_S + 52) == 11
        assert list(store.samples()) == new
        assert store._connection.execute("SELECT pid FROM processes").fetchall() == [(2,)]
        assert store._connection.execute("SELECT COUNT(*) FROM process_samples").fetchone() == (10,)
        assert store.prune(before_unix_s=START_UNIX_S + 52) == 0
        assert len(store.watches()) == 1
        store.prune(before_unix_s=START_UNIX_S + 1000)
        assert store.watches() == []


def test_a_process_that_another_writer_pruned_is_known_again_when_it_comes_back(path: Path) -> None:
    write(path, series((5, 50.0)))
    with WatchStore(path) as store, WatchStore(path) as other:
        store.add(1, series((5, 50.0), processes=(process(1),)), OVERHEAD)
        store.add(1, series((5, 50.0), start_s=1000), OVERHEAD)
        other.prune(before_unix_s=START_UNIX_S + 500)
        store.add(1, series((5, 50.0), start_s=2000, processes=(process(1),)), OVERHEAD)
        assert list(store.samples())[-1].processes == (process(1),)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("covers_s", "long"),
        ("power_w", float("inf")),
        ("utilisation_percent", b"\xff"),
        ("throttle_reasons", "[1,"),
        ("throttle_reasons", "7"),
    ],
)
def test_a_damaged_row_is_left_out_and_counted(path: Path, column: str, value: object) -> None:
    samples = series((50, 50.0), processes=(process(1),))
    write(path, samples)
    edit(path, f"UPDATE samples SET {column} = ? WHERE sample_id = 5", value)
    with WatchStore(path, create=False) as store:
        assert sorted(store.samples(), key=lambda row: row.time_unix_s) == [*samples[:4], *samples[5:]]
        assert store.num_damaged == 1


def test_absent_newer_and_foreign_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing was watched yet at .*: run gpualloc watch"):
        WatchStore(path, create=False)
    write(path, series((5, 50.0)))
    edit(path, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"the watch store .* has schema 99, this gpualloc reads up to 1; upgrade gpualloc"):
        WatchStore(path)
    results = tmp_path / "results.sqlite"
    ResultsStore(results).__exit__(None, None, None)
    before = results.read_bytes()
    with pytest.raises(StoreError, match="of another program; use another file with --store"):
        WatchStore(results)
    assert results.read_bytes() == before


def test_only_the_owner_reads_who_ran_what(path: Path) -> None:
    write(path, [GPU])
    assert path.stat().st_mode & 0o077 == 0


def test_a_damaged_process_takes_its_sample_along(path: Path) -> None:
    write(path, series((50, 50.0), processes=(process(1), process(2))))
    edit(path, "UPDATE process_samples SET cpu_percent = 'much' WHERE sample_id = 3 AND process_id = 2")
    with WatchStore(path, create=False) as store:
        assert len(list(store.samples())) == 9
        assert store.num_damaged == 1
