"""Planning again, driven by changes of the file and of the store."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpualloc.errors import UsageError
from gpualloc.plan.preparing import PlanOptions
from gpualloc.plan.rates import Knowledge, read_measurements
from gpualloc.plan.watching import Watcher
from gpualloc.records import Measurement
from gpualloc.store import ResultsStore
from tests.plan.inputs import NOW, a100_row, cluster, single, workload
from tests.plan.test_planner import SCALING

Write = Callable[..., None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "workloads.yaml"


@pytest.fixture
def write(file: Path) -> Write:
    def write(*workloads: dict[str, Any]) -> None:
        file.write_text(yaml.safe_dump({"workloads": list(workloads)}))

    return write


@pytest.fixture
def watcher(file: Path, tmp_path: Path) -> Watcher:
    store = tmp_path / "results.sqlite"
    return Watcher(
        file,
        read_cluster=lambda: cluster({"num_gpus": 2}),
        read_knowledge=lambda: Knowledge(measurements=read_measurements(store)),
        store_path=store,
        options=PlanOptions(may_wait=True),
    )


def add(tmp_path: Path, row: Measurement) -> None:
    assert row.environment is not None
    with ResultsStore(tmp_path / "results.sqlite") as store:
        run_id = store.begin_run(command="gpualloc run", options={}, environment=row.environment)
        store.add(run_id, row)
        store.finish_run(run_id, "complete")


def texts(watcher: Watcher, after_s: float) -> list[str]:
    return [decision.text for decision in watcher.look(NOW + timedelta(seconds=after_s))]


def test_arrivals_and_ends_are_planned_and_nothing_is_said_where_nothing_happens(watcher: Watcher, write: Write) -> None:
    write(workload("a"))
    assert texts(watcher, 0) == ["a arrived", "a starts: 1 x A100 (n0: 0)"]
    plan = watcher.plan
    assert texts(watcher, 5) == []
    assert watcher.plan is plan
    write(workload("a"), workload("b"), workload("c"))
    assert texts(watcher, 600) == [
        "b arrived",
        "c arrived",
        "b starts: 1 x A100 (n0: 1)",
        "c starts: 1 x A100 (n0: 0) in 50 min",
    ]
    write(workload("b"), workload("c"))
    assert texts(watcher, 1200) == ["a ended", "c is rescheduled: 1 x A100 (n0: 0) in 40 min -> 1 x A100 (n0: 0)"]
    write(workload("b", samples_done=360_000), workload("c"))
    assert texts(watcher, 1300) == ["b ended"]
    write()
    assert texts(watcher, 1400) == ["c ended"]
    assert watcher.plan is not None
    assert watcher.plan.assignments == ()


@pytest.mark.parametrize(("measured_rate", "is_drift"), [(100.0, False), (94.0, False), (60.0, True), (150.0, True)])
def test_drift_is_a_measured_rate_off_the_plans_interval(
    measured_rate: float, is_drift: bool, watcher: Watcher, write: Write, tmp_path: Path
) -> None:
    write(workload("a", batch={"global_batch_size": 64}))
    texts(watcher, 0)
    add(tmp_path, a100_row(64 / measured_rate, **single()))
    said = texts(watcher, 360)
    assert (said != []) is is_drift
    if is_drift:
        assert said == [f"a drifted: {measured_rate:.4g} samples/s (measured) instead of 100", "a stays: 1 x A100 (n0: 0)"]
        assert texts(watcher, 400) == []  # it is the planned rate now


@pytest.mark.parametrize(("restart_cost_s", "is_moved"), [(10.0, True), (3000.0, False)])
def test_a_job_that_drifted_is_moved_where_that_pays(
    restart_cost_s: float, is_moved: bool, watcher: Watcher, write: Write, tmp_path: Path
) -> None:
    """On two GPUs it was to do 180 samples a second, does 60, and would do 100 on one: an hour and three quarters, or one."""
    write(workload("a", rates=SCALING, batch={"global_batch_size": 128}, restart_cost_s=restart_cost_s))
    texts(watcher, 0)
    add(tmp_path, a100_row(128 / 60.0))
    add(tmp_path, a100_row(128 / 100.0, **single(per_device_batch_size=128)))
    write(workload("a", rates=[], batch={"global_batch_size": 128}, restart_cost_s=restart_cost_s, samples_done=0))
    drifted, *decided = [text for text in texts(watcher, 60) if "changed" not in text]
    assert drifted == "a drifted: 60 samples/s (measured) instead of 180"
    moves = f"a moves: 2 x A100 (n0: 0-1) -> 1 x A100 (n0: 0), a restart of {restart_cost_s:.0f} s"
    assert decided == [moves if is_moved else "a stays: 2 x A100 (n0: 0-1)"]


def test_a_file_that_is_being_written_changes_nothing_until_it_can_be_read(watcher: Watcher, write: Write, file: Path) -> None:
    write(workload("a"))
    texts(watcher, 0)
    file.write_text("workloads: [")
    (said,) = texts(watcher, 5)
    assert said.startswith("the plan stays as it is:")
    assert "is not YAML" in said
    assert texts(watcher, 10) == []
    write(workload("a"))
    assert texts(watcher, 15) == []


def test_the_first_look_needs_a_file_that_can_be_used(watcher: Watcher, file: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the workloads file"):
        watcher.look(NOW)
    file.write_text("workloads: 3")
    with pytest.raises(UsageError, match="workloads: input should be a valid list"):
        watcher.look(NOW)


def test_who_cannot_be_placed_waits_and_a_measured_one_is_planned(watcher: Watcher, write: Write, tmp_path: Path) -> None:
    write(workload("big", min_gpus=8, rates={("A100", 8): 1.0}), workload("new", rates={}, batch={"global_batch_size": 64}))
    said = texts(watcher, 0)
    assert any(text.startswith("big waits: ") for text in said)
    assert any(text.startswith("new waits: it is measured first") for text in said)
    add(tmp_path, a100_row(0.64, **single()))
    assert texts(watcher, 300)[0] == "new was measured on A100"
    assert watcher.plan is not None
    assert [each.workload for each in watcher.plan.assignments] == ["new"]


def test_a_change_of_limits_is_a_change_and_progress_alone_is_none(watcher: Watcher, write: Write) -> None:
    write(workload("a", rates=SCALING, max_gpus=1))
    texts(watcher, 0)
    write(workload("a", rates=SCALING, max_gpus=1, samples_done=1000))
    assert texts(watcher, 5) == []
    write(workload("a", rates=SCALING, max_gpus=2, restart_cost_s=10))
    assert texts(watcher, 10) == [
        "a changed in workloads.yaml",
        "a moves: 1 x A100 (n0: 0) -> 2 x A100 (n0: 0-1), a restart of 10 s",
    ]


def test_a_watcher_goes_on_from_a_plan_that_runs(watcher: Watcher, write: Write, file: Path, tmp_path: Path) -> None:
    write(workload("a"))
    texts(watcher, 0)
    again = Watcher(
        file,
        read_cluster=lambda: cluster({"num_gpus": 2}),
        read_knowledge=Knowledge,
        store_path=tmp_path / "none.sqlite",
        options=PlanOptions(may_wait=True),
        current=watcher.plan,
    )
    write(workload("a"), workload("b"))
    assert texts(again, 60) == ["b arrived", "a stays: 1 x A100 (n0: 0)", "b starts: 1 x A100 (n0: 1)"]
    assert os.path.exists(file)


def test_a_deadline_counts_from_when_the_file_first_had_it(watcher: Watcher, write: Write) -> None:
    running, waiting = workload("running", max_gpus=2, rates={("A100", 2): 100.0}, preemptible=False), workload("waiting", deadline_h=2.5)
    write(running, waiting)
    watcher.look(NOW)
    assert watcher.planned is not None
    write(running, waiting, workload("urgent", weight=9.0, max_gpus=2, rates={("A100", 2): 150.0}))
    watcher.look(NOW + timedelta(hours=0.9))
    assert watcher.plan is not None
    finish_s = {each.workload: each.finish_s for each in watcher.plan.assignments}
    assert finish_s["waiting"] <= (2.5 - 0.9) * 3600 + 1


def test_what_no_plan_can_be_made_of_is_an_error_at_the_first_look(file: Path, write: Write, tmp_path: Path) -> None:
    write(workload())
    store = tmp_path / "results.sqlite"
    options = PlanOptions(may_wait=True, objective="cost")
    unpriced = Watcher(file, read_cluster=lambda: cluster({}), read_knowledge=Knowledge, store_path=store, options=options)
    with pytest.raises(UsageError, match="price"):
        unpriced.look(NOW)
