"""How `gpualloc bench` carries a grid out: a run is opened or gone on with, announced, shown while it is measured, closed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from gpualloc.cli.progress import Parts, show_parts
from gpualloc.cli.tables import printable
from gpualloc.errors import StoreError

if TYPE_CHECKING:
    from gpualloc.bench.grid import GridCell
    from gpualloc.bench.grid_run import GridRun, Progress
    from gpualloc.bench.options import BenchOptions
    from gpualloc.bench.settings import RunSettings
    from gpualloc.records import BenchCase, Environment, Measurement
    from gpualloc.store import ResultsStore


def open_run(
    results: ResultsStore, grids: Sequence[BenchOptions], environment: Environment, *, resume: bool
) -> tuple[int, dict[str, Measurement]]:
    """(run number, case key -> measurement that need not be made again)."""
    from dataclasses import asdict

    options = asdict(grids[0]) if len(grids) == 1 else {"grids": [asdict(grid) for grid in grids]}
    if resume:
        run_id = results.find_run(options=options, environment=environment)
        if run_id is not None:
            results.reopen_run(run_id)
            readable, _ = results.measurements(run_id)
            finished = {measurement.case.key(): measurement for measurement in readable if measurement.status == "ok"}
            say(f"going on with run {run_id}, which has {len(finished)} finished cases")
            return run_id, finished
        say(f"nothing to resume: {results.path} has no run of these options on this machine; starting a new one")
    command = shlex.join(["gpualloc", *sys.argv[1:]])
    return results.begin_run(command=command, options=options, environment=environment), {}


def announce(cells: Sequence[GridCell], environment: Environment) -> None:
    """What the figures will stand for, on stderr."""
    from gpualloc.workloads import describe_data

    first = cells[0].case
    world_sizes = {cell.case.world_size for cell in cells if cell.case.strategy != "single"}
    backend = "gloo" if first.device == "cpu" else "nccl"
    rehearsed = "rehearsed " if first.cluster() is not None else ""
    ranks = f"{', '.join(map(str, sorted(world_sizes)))} {rehearsed}{backend} ranks" if world_sizes else "one process"
    if first.device == "cpu":
        say(f"CPU, {ranks}, not comparable with a GPU ({environment.device_name}, {environment.num_cpus} cores)")
    else:
        shared = f", {first.ranks_per_gpu} to a GPU" if first.ranks_per_gpu > 1 else ""
        say(f"{environment.num_devices} x {environment.device_name}, {ranks}{shared}")
    cases = {cell.case.workload: cell.case for cell in reversed(cells)}  # the first of each workload
    say("data: " + "; ".join(f"{workload}: {describe_data(case).description}" for workload, case in sorted(cases.items())))
    if any(cell.case.hook.startswith("gpualloc") for cell in cells):
        if environment.native.startswith("unavailable"):
            say(f"warning: gpualloc hooks run in Python here, the compiled extension is {environment.native}")
        elif first.device == "cuda" and environment.native != "cuda":
            say("warning: gpualloc hooks run without their kernels here, the extension has no CUDA half: see gpualloc doctor")


def prepare_run(
    cells: Sequence[GridCell],
    results: ResultsStore,
    run_id: int,
    environment: Environment,
    settings: RunSettings,
    finished: dict[str, Measurement],
    show_log: Callable[[str], None] | None,
) -> GridRun:
    from gpualloc.bench.grid_run import GridRun

    estimates_s: dict[str, float] = {}
    if settings.max_minutes is not None or sys.stderr.isatty():  # there it tells the time left before a case has ended
        from gpualloc.bench.dry_run import estimate_cases, read_history

        estimates = estimate_cases(cells, environment, read_history(results))
        estimates_s = {key: estimate.seconds for key, estimate in estimates.items()}
    return GridRun(
        cells=cells,
        store=results,
        run_id=run_id,
        environment=environment,
        settings=settings,
        estimates_s=estimates_s,
        finished=finished,
        warn=say,
        show_log=show_log,
    )


def carry_out(grid_run: GridRun, how_to_see: str) -> tuple[list[Measurement], int]:
    """All cells measured and the run closed, and 0; on SIGINT and SIGTERM what had finished, and the exit code of an interruption."""
    from gpualloc.bench.interruption import Interrupted, interruptible

    try:
        with interruptible(), show_parts(_weights(grid_run), are_seconds=bool(grid_run.estimates_s)) as parts:
            measurements = grid_run.run(case_teller(parts))
    except BaseException as error:
        with suppress(StoreError):  # the error at hand says more
            grid_run.store.finish_run(grid_run.run_id, "interrupted")
        if not isinstance(error, Interrupted):
            raise
        say(f"interrupted ({error}): add --resume to go on; {how_to_see}")
        return grid_run.store.measurements(grid_run.run_id)[0], error.exit_code
    grid_run.store.finish_run(grid_run.run_id, "complete")
    return measurements, 0


def case_teller(parts: Parts) -> Progress:
    """Tells `parts` what a `GridRun` says of its cases."""

    def tell(number: int, case: BenchCase, measurement: Measurement | None) -> None:
        if measurement is None:
            parts.begin(case.label())
        else:
            parts.end(_line(measurement))

    return tell


def say(text: str) -> None:
    """One line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def _weights(grid_run: GridRun) -> list[float]:
    """Expected seconds of each run, or 1; what is left out or done already takes no time."""
    cells = [grid_run.cells[index] for index in grid_run.schedule]
    return [
        0.0 if cell.skip_reason or cell.case.key() in grid_run.finished else grid_run.estimates_s.get(cell.case.key(), 1.0)
        for cell in cells
    ]


def _line(measurement: Measurement) -> str:
    figures = f"{measurement.step_time_s * 1e3:.2f} ms a step" if measurement.step_time_s else f"{measurement.status}: {measurement.reason}"
    return f"{measurement.case.label()}: {figures}"
