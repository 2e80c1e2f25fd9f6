"""A grid on its way: what is kept when, rounds, budgets, smaller batches, busy devices. The cases themselves are made up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpualloc.bench import grid_run, isolation, runner
from gpualloc.bench.grid import GridCell
from gpualloc.bench.grid_run import GridRun
from gpualloc.bench.settings import RunSettings
from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase, Measurement
from gpualloc.store import ResultsStore
from tests.bench.cases import tiny_case
from tests.store.sample_measurements import CPU_ENVIRONMENT, measured

CASES = [tiny_case(seed=seed) for seed in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultsStore]:
    with ResultsStore(tmp_path / "results.sqlite") as opened:
        opened.begin_run(command="test", options={}, environment=CPU_ENVIRONMENT)
        yield opened


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[BenchCase]:
    """The cases that ran, 0.1 s a step each; those whose batch is above 8 run out of memory."""
    cases: list[BenchCase] = []

    def run_case(case: BenchCase, **settings: object) -> Measurement:
        cases.append(case)
        if case.per_device_batch_size > 8:
            return Measurement(case=case, status="oom", reason="rank 0: no memory", wall_time_s=1.0)
        return measured(case, 0.1, wall_time_s=2.0)

    monkeypatch.setattr(runner, "run_case", run_case)
    monkeypatch.setattr(isolation, "why_busy", lambda device: None)
    return cases


@pytest.fixture
def make(store: ResultsStore) -> Callable[..., GridRun]:
    def make_run(*cells: GridCell | BenchCase, finished: tuple[Measurement, ...] = (), warn: Any = print, **settings: Any) -> GridRun:
        return GridRun(
            cells=[cell if isinstance(cell, GridCell) else GridCell(cell, None) for cell in cells],
            store=store,
            run_id=1,
            environment=CPU_ENVIRONMENT,
            settings=RunSettings(**settings),
            finished={measurement.case.key(): measurement for measurement in finished},
            warn=warn,
        )

    return make_run


def test_each_measurement_is_kept_at_once(make: Callable[..., GridRun], store: ResultsStore, ran: list[BenchCase]) -> None:
    calls: list[tuple[int, bool, int]] = []

    def progress(number: int, case: BenchCase, measurement: Measurement | None) -> None:
        calls.append((number, measurement is not None, len(store.measurements(1)[0])))

    done = measured(CASES[2], 1.0)
    measurements = make(CASES[0], GridCell(CASES[1], "no such unit"), CASES[2], CASES[3], finished=(done,)).run(progress)
    assert [(row.case, row.status) for row in measurements] == list(zip(CASES, ["ok", "skipped", "ok", "ok"], strict=True))
    assert measurements[1].reason == "no such unit"
    assert measurements[2] is done
    assert ran == [CASES[0], CASES[3]]
    assert calls == [(0, False, 0), (0, True, 1), (1, False, 1), (1, True, 2), (2, True, 2), (3, False, 2), (3, True, 3)]


def test_rounds_are_pooled_in_the_store(make: Callable[..., GridRun], store: ResultsStore, ran: list[BenchCase]) -> None:
    run = make(*CASES[:3], rounds=2)
    rows = run.run()
    assert len(run.schedule) == len(ran) == 6
    assert ran[:3] == ran[3:][::-1]
    assert [(row.num_rounds, len(row.repeat_step_times_s)) for row in rows] == [(2, 10)] * 3
    assert sorted(store.measurements(1)[0], key=lambda row: row.case.seed) == rows


def test_a_run_that_stopped_between_rounds_goes_on_with_what_is_missing(make: Callable[..., GridRun], ran: list[BenchCase]) -> None:
    run = make(*CASES[:2], finished=(measured(CASES[0], 0.1),), rounds=3)
    rows = run.run()
    assert [ran.count(case) for case in CASES[:2]] == [2, 3]
    assert [row.num_rounds for row in rows] == [3, 3]


def test_a_batch_that_does_not_fit_is_halved(make: Callable[..., GridRun], ran: list[BenchCase]) -> None:
    asked = tiny_case(per_device_batch_size=40)
    [row] = make(asked, on_oom="halve", rounds=2).run()
    assert [case.per_device_batch_size for case in ran] == [40, 20, 10, 5, 5]
    assert (row.status, row.case.per_device_batch_size, row.asked_batch_size) == ("ok", 5, 40)
    assert row.reason == "batch 40 did not fit"
    assert row.wall_time_s == 7.0
    ran.clear()
    assert make(asked, finished=(row,), on_oom="halve", rounds=2).run() == [row]
    assert ran == []


def test_without_that_option_it_is_marked(make: Callable[..., GridRun], ran: list[BenchCase]) -> None:
    [row] = make(tiny_case(per_device_batch_size=40)).run()
    assert (row.status, row.reason, len(ran)) == ("oom", "rank 0: no memory", 1)


def test_a_model_that_never_fits_is_told_as_asked(
    make: Callable[..., GridRun], monkeypatch: pytest.MonkeyPatch, ran: list[BenchCase]
) -> None:
    monkeypatch.setattr(runner, "run_case", lambda case, **settings: Measurement(case=case, status="oom", reason="no memory"))
    [row] = make(tiny_case(per_device_batch_size=4), on_oom="halve").run()
    assert (row.status, row.case.per_device_batch_size, row.reason) == ("oom", 4, "no memory; nor did a batch of 1 fit")


def test_the_budget_is_held_by_the_real_clock(make: Callable[..., GridRun], monkeypatch: pytest.MonkeyPatch, ran: list[BenchCase]) -> None:
    clock = itertools.count(0, 20)  # seconds, at each reading
    monkeypatch.setattr(grid_run.time, "monotonic", lambda: next(clock))
    run = make(*CASES, max_minutes=1)
    run.estimates_s = {case.key(): 15.0 for case in CASES}
    rows = run.run()
    assert [row.status for row in rows] == ["ok", "ok", "skipped", "skipped"]
    assert rows[3].reason == "budget: did not fit into 1 min; go on with --resume"


@pytest.mark.parametrize(("on_busy", "statuses"), [("warn", ["ok", "ok"]), ("skip", ["skipped", "skipped"])])
def test_a_busy_device(
    make: Callable[..., GridRun], monkeypatch: pytest.MonkeyPatch, ran: list[BenchCase], on_busy: str, statuses: list[str]
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(isolation, "why_busy", lambda device: "GPU 0 is in use by process 7 (python)")
    rows = make(*CASES[:2], on_busy=on_busy, warn=warnings.append).run()
    assert [row.status for row in rows] == statuses
    assert len(warnings) == (1 if on_busy == "warn" else 0)
    assert on_busy == "warn" or rows[0].reason == "busy: GPU 0 is in use by process 7 (python)"


def test_a_busy_device_can_end_the_run(make: Callable[..., GridRun], monkeypatch: pytest.MonkeyPatch, ran: list[BenchCase]) -> None:
    monkeypatch.setattr(isolation, "why_busy", lambda device: "GPU 0 is in use by process 7 (python)")
    with pytest.raises(GpuallocError, match=r"was not measured: GPU 0 is in use by process 7 \(python\); wait until it ends"):
        make(*CASES[:2], on_busy="error").run()
    assert ran == []
