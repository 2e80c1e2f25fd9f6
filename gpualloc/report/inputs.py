"""What a report is made from: records and, of later stages, what their JSON files hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gpualloc.findings import DEFAULT_MIN_EFFICIENCY, Efficiency, Findings, Gain, find
from gpualloc.findings.how import how_gains
from gpualloc.findings.rows import usable_rows
from gpualloc.records import Environment, Measurement

if TYPE_CHECKING:
    from gpualloc.profiling.records import Profile
    from gpualloc.profiling.trace import Trace
    from gpualloc.quality.records import Experiment
    from gpualloc.report.later_stages import AdviceFile, ForecastFile, PlanFile, SimulationFile, TimelineFile
    from gpualloc.report.rehearsal_file import RehearsalFile
    from gpualloc.watching.samples import DeviceSample
    from gpualloc.watching.waste import Price, WasteReport


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A run of `gpualloc bench`."""

    name: str  # its number, or the file it came in
    started_at_utc: str
    status: str
    command: str
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All runs of one machine: only they are compared with each other."""

    environment: Environment | None
    runs: tuple[MeasuredRun, ...]
    min_efficiency: float = DEFAULT_MIN_EFFICIENCY

    @property
    def machine(self) -> str:
        """The device's name; "?" where the file does not say."""
        return "?" if self.environment is None else self.environment.device_name

    @cached_property
    def measurements(self) -> list[Measurement]:
        """Each case once: as it was measured last."""
        newest: dict[str, Measurement] = {}
        for run in self.runs:
            newest.update((row.case.key(), row) for row in run.measurements)
        return list(newest.values())

    @cached_property
    def usable(self) -> list[Measurement]:
        """Those that may be compared: finished, and not disturbed."""
        return usable_rows(self.measurements)[0]

    @cached_property
    def findings(self) -> Findings:
        """What the measurements answer, as in `gpualloc results compare`."""
        return find(self.measurements, min_efficiency=self.min_efficiency)

    @cached_property
    def how_gains(self) -> tuple[Gain, ...]:
        """What other strategies and hooks gain over ddp without a hook."""
        return how_gains(self.usable)

    @cached_property
    def efficiencies(self) -> Sequence[Efficiency]:
        """Of each case on several ranks that has a single process beside it."""
        return self.findings.efficiencies


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What `gpualloc watch` kept."""

    samples: tuple[DeviceSample, ...]
    waste: WasteReport


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything that can be in a report. Absent parts are named with the command that makes them."""

    studies: tuple[Study, ...]
    made_at_utc: str
    command: str  # that made the report
    problems: tuple[str, ...] = ()  # rows that could not be read
    price: Price | None = None  # of one GPU and hour
    profile: Profile | None = None
    trace: Trace | None = None
    experiments: tuple[Experiment, ...] = ()
    rehearsal: RehearsalFile | None = None
    watched: Watched | None = None
    forecast: ForecastFile | None = None
    advice: AdviceFile | None = None
    plan: PlanFile | None = None
    simulation: SimulationFile | None = None
    timeline: TimelineFile | None = None  # of the simulation
