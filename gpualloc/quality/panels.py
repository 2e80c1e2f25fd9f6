"""Loss curves: for each model the training loss, and the held-out accuracy or loss; means over the seeds in their range."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from gpualloc.plots import Line, Panel
from gpualloc.quality.records import CurvePoint, TrainingRun


def panels(runs: Sequence[TrainingRun]) -> list[list[Panel]]:
    """A row for each model; trainings without a curve are left out, and points at which every seed had inf or NaN."""
    drawn = [run for run in runs if run.curve]
    rows = []
    for model in dict.fromkeys(run.case.model for run in drawn):
        group = [run for run in drawn if run.case.model == model]
        is_image = group[0].case.workload == "image"
        held_out = ("held-out accuracy", _accuracy) if is_image else ("held-out loss", _test_loss)
        rows.append([_panel(model, group, *figure) for figure in (("training loss", _train_loss), held_out)])
    return rows


def _panel(model: str, runs: Sequence[TrainingRun], y_label: str, value_of: Callable[[CurvePoint], float | None]) -> Panel:
    groups: dict[str, list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(f"{run.case.precision}, {run.case.hook}", []).append(run)
    num_seeds = max(map(len, groups.values()))
    return Panel(
        title=f"{model}: mean and range of {num_seeds} seeds",
        x_label="step",
        y_label=y_label,
        lines=tuple(_line(label, group, value_of) for label, group in groups.items()),
        is_banded=True,
    )


def _line(label: str, runs: Sequence[TrainingRun], value_of: Callable[[CurvePoint], float | None]) -> Line:
    columns = []
    for points in zip(*(run.curve for run in runs), strict=False):
        values = [value for point in points if (value := value_of(point)) is not None]
        if values:
            columns.append((float(points[0].step), statistics.fmean(values), min(values), max(values)))
    x, y, low, high = zip(*columns, strict=True) if columns else ((), (), (), ())
    return Line(label=label, x=x, y=y, low=low, high=high)


def _train_loss(point: CurvePoint) -> float | None:
    return point.train_loss


def _test_loss(point: CurvePoint) -> float | None:
    return point.test_loss


def _accuracy(point: CurvePoint) -> float | None:
    return point.test_accuracy
