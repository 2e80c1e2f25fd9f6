"""Commands that meet a file they cannot use, a disk without room, or a terminal too small to say so."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.errors import StoreError
from gpualloc.launch.leases import LeaseStore
from gpualloc.scaling.csv_rows import read_rows
from tests.cli.conftest import filled, store_path
from tests.launch import plans

__all__ = ["filled", "store_path"]  # fixtures
HEADER = "cluster,model,num_nodes,num_gpus,placement,per_device_batch_size,step_time_s,sync_time_s"
JUNK = b"leases: none\n" * 1000


def invoke(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state.sqlite"
    monkeypatch.setenv("GPUALLOC_STATE", str(path))
    return path


def test_a_corrupt_state_file_allocates_nothing_and_is_repaired_with_a_copy(state: Path, tmp_path: Path) -> None:
    state.write_bytes(JUNK)
    plan = plans.write(tmp_path, plans.assignment("text", command=("true",)))
    for words in (("run", plan), ("status",), ("stop", "text"), ("logs", "text")):
        code, stdout, stderr = invoke(*words)
        assert (code, stdout) == (1, "")
        assert f"the state file {state} cannot be used: file is not a database" in stderr
        assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "jobs").exists()
    assert state.read_bytes() == JUNK
    assert invoke("doctor", "--repair")[0] == 0
    (copy,) = tmp_path.glob("state.sqlite.damaged-*")
    assert copy.read_bytes() == JUNK
    assert invoke("status")[0] == 0


def test_a_state_file_of_a_newer_gpualloc_is_refused_with_its_version(state: Path) -> None:
    with LeaseStore(state):
        pass
    with contextlib.closing(sqlite3.connect(state)) as connection:
        connection.execute("PRAGMA user_version = 99")
    code, _, stderr = invoke("status")
    assert (code, "has schema 99, this gpualloc reads up to 1; upgrade gpualloc" in stderr) == (1, True)
    assert invoke("doctor", "--repair")[0] == 1


def test_a_locked_state_file_allocates_nothing(state: Path) -> None:
    with LeaseStore(state, lock_timeout_s=0.05) as leases, contextlib.closing(sqlite3.connect(state, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked; another gpualloc is writing to it"):
            leases.acquire(["GPU-a"], holder="me")
        other.execute("ROLLBACK")
        assert leases.held() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """32 KiB, as of a quota that is used up."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.usefixtures("filled")
def test_a_report_that_does_not_fit_leaves_the_old_one(small_disk: Path) -> None:
    page = small_disk / "page.html"
    page.write_text("the old one")
    code, _, stderr = invoke("report", "-o", page)
    assert (code, stderr) == (1, f"gpualloc: error: {page} cannot be written: No space left on device; choose another file with -o\n")
    assert [each.name for each in small_disk.iterdir()] == ["page.html"]
    assert page.read_text() == "the old one"
    code, _, stderr = invoke("results", "export", "1", "-o", "/dev/full")
    assert (code, "No space left on device" in stderr) == (1, True)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "words", [("results",), ("results", "show", "1"), ("results", "compare", "1", "3"), ("advise",), ("config",), ("status",)]
)
def test_a_terminal_of_20_columns(words: tuple[str, ...], state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LeaseStore(state):
        pass
    monkeypatch.setenv("COLUMNS", "20")
    code, _, stderr = invoke(*words)
    assert code == 0, stderr


def test_a_huge_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        file.write(f"{HEADER}\n")
        file.writelines("c,m,1,1,,8,1,\n" for _ in range(50_000))
    assert len(read_rows(path)) == 50_000


def test_a_csv_cell_of_megabytes_is_an_error_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"{HEADER}\nc,{'m' * 10**6},1,1,,8,1,\n")
    code, _, stderr = invoke("forecast", "fit", "--csv", tmp_path / "rows.csv", "--out", tmp_path / "m.json")
    assert code == 2
    assert len(stderr) < 1000
    assert "rows.csv" in stderr
