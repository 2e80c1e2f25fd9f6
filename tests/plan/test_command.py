"""What `gpualloc plan` makes of files that can be read but not planned as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_plan import files, run
from tests.plan.inputs import workload


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "store" / "results.sqlite"))


def test_a_workload_that_is_done_is_left_out_and_told(tmp_path: Path) -> None:
    done = run(*files(tmp_path, workload("a", samples_done=360_000), workload("b")))
    assert "a is left out: its 360,000 samples are done" in done.stderr
    assert "1 workloads planned" in done.stdout


def test_where_all_are_done_nothing_is_planned(tmp_path: Path) -> None:
    done = run(*files(tmp_path, workload("a", samples_done=400_000)), exit_code=2)
    assert "nothing is left to plan" in done.stderr
