"""What the ranks of a training are told and what they answer, as files in its folder. Loads without torch."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from gpualloc.bench import rank_files
from gpualloc.records import BenchCase


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """What the ranks are told."""

    case: BenchCase
    learning_rate: float
    num_points: int  # of the curve
    timeout_s: float  # for one collective


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What a rank saw, point by point. Losses may be inf or NaN."""

    steps: list[int]
    train_losses: list[float]  # of this rank
    test_losses: list[float]
    test_accuracies: list[float] | None  # None for text
    stretch_times_s: list[float]  # from one point to the next, the test left out
    wire_bytes_per_step: int | None
    nonfinite_steps: int | None


def write_order(folder: Path, order: TrainingOrder) -> None:
    (folder / "order.json").write_text(json.dumps(asdict(order)))


def read_order(folder: Path) -> TrainingOrder:
    fields = json.loads((folder / "order.json").read_text())
    return TrainingOrder(**{**fields, "case": BenchCase(**fields["case"])})


def read_report(folder: Path, rank: int) -> TrainingReport:
    return TrainingReport(**json.loads(rank_files.report_file(folder, rank).read_text()))


def step_time_s(report: TrainingReport) -> float:
    """Median over the stretches; the first one, in which caches fill and DDP rebuilds its buckets, only where it is alone."""
    num_steps = [later - earlier for earlier, later in zip([0, *report.steps], report.steps, strict=False)]
    times_s = [time_s / count for time_s, count in zip(report.stretch_times_s, num_steps, strict=True)]
    return statistics.median(times_s[1:] or times_s)
