"""What a benchmark would do: its cases in the order they run, how long each takes, and which the budget leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpualloc.bench.estimate import Estimate, Estimator
from gpualloc.bench.grid import GridCell
from gpualloc.bench.schedule import make_schedule
from gpualloc.bench.settings import RunSettings
from gpualloc.records import BenchCase, Environment, Measurement
from gpualloc.store import ResultsStore

_MAX_RUNS = 50  # newest ones, of the store


@dataclass(frozen=True, kw_only=True)
class PlannedCase:
    """A case of a dry run. It is skipped, left out of the budget (no rounds), or run."""

    case: BenchCase
    skip_reason: str | None
    estimate: Estimate | None  # of one round; None where it is skipped
    rounds: int  # that fit


def plan_cases(cells: Sequence[GridCell], settings: RunSettings, estimates: Mapping[str, Estimate]) -> list[PlannedCase]:
    """The cases in the order they would start.

    Args:
        cells: of the grid.
        settings: of the run.
        estimates: case key -> estimate, as `estimate_cases` gives them.
    """
    by_information = settings.max_minutes is not None
    schedule = make_schedule(cells, rounds=settings.rounds, seed=cells[0].case.seed, by_information=by_information)
    left_s = float("inf") if settings.max_minutes is None else 60 * settings.max_minutes
    rounds: Counter[int] = Counter()
    for index in schedule:
        estimate = estimates.get(cells[index].case.key())
        if estimate is not None and estimate.seconds <= left_s:
            left_s -= estimate.seconds
            rounds[index] += 1
    return [
        PlannedCase(
            case=cells[index].case,
            skip_reason=cells[index].skip_reason,
            estimate=estimates.get(cells[index].case.key()),
            rounds=rounds[index],
        )
        for index in dict.fromkeys(schedule)
    ]


def estimate_cases(cells: Sequence[GridCell], environment: Environment, history: Sequence[Measurement]) -> dict[str, Estimate]:
    """Case key -> estimate, of the cases that can run."""
    estimator = Estimator(environment, history)
    return {cell.case.key(): estimator.estimate(cell.case) for cell in cells if cell.skip_reason is None}


def read_history(store: ResultsStore) -> list[Measurement]:
    """The measurements of the newest runs, the newest first."""
    return [row for run in store.runs()[:_MAX_RUNS] for row in reversed(store.measurements(run.run_id)[0])]
