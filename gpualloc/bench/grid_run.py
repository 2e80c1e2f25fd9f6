"""Runs the cases of a grid, one group of fresh processes after the other, and keeps what comes out at once."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpualloc.bench import isolation, runner
from gpualloc.bench.grid import GridCell
from gpualloc.bench.rank_server import RankServer
from gpualloc.bench.rounds import pool_rounds
from gpualloc.bench.schedule import make_schedule
from gpualloc.bench.settings import RunSettings
from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase, Environment, Measurement

if TYPE_CHECKING:
    from gpualloc.store import ResultsStore

BUDGET = "budget"  # how the reason of a case begins that --max-minutes left out

# Called before a case runs, with None, and after it, with what came out. The number counts runs from 0.
Progress = Callable[[int, BenchCase, "Measurement | None"], None]


@dataclass(kw_only=True)
class GridRun:
    """A grid on its way to measurements; each is kept in the store as soon as it is made.

    Args:
        cells: what is to be measured.
        settings: how.
        estimates_s: case key -> expected seconds of one round; a case without one is taken to fit into any budget.
        finished: case key -> measurement of an earlier run of the same grid; those with all their rounds are not made again.
        warn: given what should be known at once.
        show_log: given what the first failing rank of a case printed.
    """

    cells: Sequence[GridCell]
    store: ResultsStore
    run_id: int
    environment: Environment
    settings: RunSettings = field(default_factory=RunSettings)
    estimates_s: Mapping[str, float] = field(default_factory=dict)
    finished: Mapping[str, Measurement] = field(default_factory=dict)
    warn: Callable[[str], None] = lambda text: None
    show_log: Callable[[str], None] | None = None
    _measured: dict[int, Measurement] = field(default_factory=dict)  # by index of the cell
    _has_warned: bool = False
    _server: RankServer | None = None

    def __post_init__(self) -> None:
        self._deadline_s = math.inf
        finished = {_asked_case(measurement).key(): measurement for measurement in self.finished.values() if measurement.status == "ok"}
        self._measured = {index: finished[cell.case.key()] for index, cell in enumerate(self.cells) if cell.case.key() in finished}
        self.schedule = self._make_schedule()

    def run(self, progress: Progress = lambda number, case, measurement: None) -> list[Measurement]:
        """Runs what is left; gives the measurements in the order of the cells.

        Raises:
            StoreError: a measurement cannot be kept.
            GpuallocError: the device is busy and the settings say "error".
        """
        if self.settings.max_minutes is not None:
            self._deadline_s = time.monotonic() + 60 * self.settings.max_minutes
        forked: set[int] = set()  # cells whose ranks the present server has forked
        with RankServer() as self._server:
            for number, index in enumerate(self.schedule):
                case = self.cells[index].case
                earlier = self._measured.get(index)
                if earlier is None or self._lacks_rounds(earlier):
                    progress(number, case, None)
                    if index in forked:
                        self._server.stop()  # rounds show what processes alone change, where libraries and heap lie among it
                        forked.clear()
                    forked.add(index)
                    self._measured[index] = self._run_once(index, earlier)
                    self.store.add(self.run_id, self._measured[index])
                progress(number, case, self._measured[index])
        return [self._measured[index] for index in range(len(self.cells))]

    def _make_schedule(self) -> list[int]:
        """Indices of the cells, each once for every round that is still to be made, and at least once."""
        rounds = self.settings.rounds
        schedule = make_schedule(
            self.cells, rounds=rounds, seed=self.cells[0].case.seed, by_information=self.settings.max_minutes is not None
        )
        left = {index: max(1, rounds - measurement.num_rounds) for index, measurement in self._measured.items()}
        kept = []
        for index in schedule:
            if left.get(index, rounds) > 0:
                kept.append(index)
                left[index] = left.get(index, rounds) - 1
        return kept

    def _lacks_rounds(self, measurement: Measurement) -> bool:
        return measurement.status == "ok" and measurement.num_rounds < self.settings.rounds

    def _run_once(self, index: int, earlier: Measurement | None) -> Measurement:
        cell = self.cells[index]
        reason = cell.skip_reason or self._over_budget(cell.case) or self._why_not_now(cell.case)
        if reason is not None:
            return earlier or Measurement(case=cell.case, status="skipped", reason=reason, environment=self.environment)
        if earlier is not None:
            return pool_rounds(earlier, self._run_case(earlier.case))
        measurement = self._run_case(cell.case)
        return self._halve(measurement) if measurement.status == "oom" and self.settings.on_oom == "halve" else measurement

    def _run_case(self, case: BenchCase) -> Measurement:
        settings = self.settings
        return runner.run_case(
            case,
            timeout_s=settings.timeout_s,
            ci_target=settings.ci_percent / 100,
            environment=self.environment,
            show_log=self.show_log,
            server=self._server,
        )

    def _halve(self, asked: Measurement) -> Measurement:
        """The case with half the batch, a quarter, ...: the first that fits, else what came of the batch asked for."""
        asked_batch_size = batch_size = asked.case.per_device_batch_size
        wall_time_s = asked.wall_time_s or 0.0
        while batch_size > 1:
            batch_size //= 2
            measurement = self._run_case(dataclasses.replace(asked.case, per_device_batch_size=batch_size))
            wall_time_s += measurement.wall_time_s or 0.0
            if measurement.status != "oom":
                reason = f"batch {asked_batch_size} did not fit" + (f"; {measurement.reason}" if measurement.reason else "")
                return dataclasses.replace(measurement, reason=reason, asked_batch_size=asked_batch_size, wall_time_s=wall_time_s)
        return dataclasses.replace(asked, reason=f"{asked.reason}; nor did a batch of 1 fit", wall_time_s=wall_time_s)

    def _over_budget(self, case: BenchCase) -> str | None:
        left_s = self._deadline_s - time.monotonic()
        if self.estimates_s.get(case.key(), 0.0) <= left_s:
            return None
        return f"{BUDGET}: did not fit into {self.settings.max_minutes:g} min; go on with --resume"

    def _why_not_now(self, case: BenchCase) -> str | None:
        """The reason to skip the case where another process is on the device and the settings say so."""
        busy = isolation.why_busy(case.device)
        if busy is None:
            return None
        if self.settings.on_busy == "error":
            raise GpuallocError(f"{case.label()} was not measured: {busy}; wait until it ends, go on with --resume, or use --on-busy warn")
        if self.settings.on_busy == "skip":
            return f"busy: {busy}"
        if not self._has_warned:
            self.warn(f"warning: {busy}; repeats that it disturbs are left out, and a case without any other is marked")
            self._has_warned = True
        return None


def _asked_case(measurement: Measurement) -> BenchCase:
    """The cell's case: with the batch size asked for, where that did not fit."""
    if measurement.asked_batch_size is None:
        return measurement.case
    return dataclasses.replace(measurement.case, per_device_batch_size=measurement.asked_batch_size)
