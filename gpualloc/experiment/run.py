"""Runs the steps of a study with the benchmark's engine, within a time budget, and keeps every measurement at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from gpualloc.bench.estimate import Estimator
from gpualloc.bench.grid_run import GridRun
from gpualloc.bench.grid_run import Progress as CaseProgress
from gpualloc.bench.settings import RunSettings
from gpualloc.experiment.plan import Done, Question, Step, next_step
from gpualloc.records import BenchCase, Environment, Measurement
from gpualloc.store import ResultsStore


@dataclass(kw_only=True)
class Progress:
    """What was done so far; grows as steps end."""

    measured: dict[str, Measurement] = field(default_factory=dict)  # case key -> what came of it
    steps: list[tuple[Step, float]] = field(default_factory=list)  # with the seconds each took
    done: Done | None = None  # None while it runs, and when it was interrupted


def run_steps(
    question: Question,
    *,
    store: ResultsStore,
    run_id: int,
    environment: Environment,
    max_minutes: float,
    settings: RunSettings,
    history: Sequence[Measurement],
    progress: Progress,
    say: Callable[[str], None] = lambda text: None,
    show: Callable[[Sequence[float]], AbstractContextManager[CaseProgress]] = lambda seconds: nullcontext(lambda *case: None),
) -> None:
    """Step after step until the question is answered or the budget cannot hold the next one. `progress` is kept up to date throughout.

    Args:
        settings: of the runs; the number of rounds is each step's own.
        show: a step begins, whose runs take so many seconds each; gives what is told of them.
        history: earlier measurements, the newest first, from which the time of a step is estimated.

    Raises:
        StoreError: a measurement cannot be kept.
    """
    deadline_s = time.monotonic() + 60 * max_minutes
    while progress.done is None:
        step = next_step(question, progress.measured)
        if isinstance(step, Done):
            progress.done = step
            return
        estimator = Estimator(environment, [*progress.measured.values(), *history])  # what just ran tells most
        case_s = {cell.case.key(): estimator.estimate(cell.case).seconds for cell in step.cells}
        needed_s = sum(case_s.values())
        left_s = deadline_s - time.monotonic()
        if needed_s > left_s:
            why = f"the next step ({step.why}) takes about {needed_s:.0f} s and {max(0.0, left_s):.0f} s of the budget are left"
            progress.done = Done(why=why, is_certain=False)
            return
        say(f"step {len(progress.steps) + 1}: {step.why}, about {needed_s:.0f} s")
        started_s = time.monotonic()
        keys = {cell.case.key() for cell in step.cells}
        grid_run = GridRun(
            cells=step.cells,
            store=store,
            run_id=run_id,
            environment=environment,
            settings=RunSettings(
                rounds=step.rounds, ci_percent=settings.ci_percent, on_busy=settings.on_busy, timeout_s=settings.timeout_s
            ),
            finished={key: row for key, row in progress.measured.items() if key in keys},
            warn=say,
        )
        with show([case_s[step.cells[index].case.key()] for index in grid_run.schedule]) as tell:

            def keep(number: int, case: BenchCase, row: Measurement | None, tell: CaseProgress = tell) -> None:
                if row is not None:
                    progress.measured[case.key()] = row
                tell(number, case, row)

            grid_run.run(keep)
        progress.steps.append((step, time.monotonic() - started_s))
