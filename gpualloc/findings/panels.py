"""Findings as panels of a figure: for each model gain by size, efficiency by size, and details by the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gpualloc.findings.labels import UNITS, parts, split_parts
from gpualloc.findings.ratio import Interval
from gpualloc.findings.records import Findings, Gain
from gpualloc.findings.rows import SIZE_FIELDS
from gpualloc.plots import Line, Panel
from gpualloc.records import DETAILS, BenchCase

_AXES = (*SIZE_FIELDS, "per_device_batch_size")
_AXIS_NAMES = {"image_size_px": "image size", "sequence_length": "sequence length", "per_device_batch_size": "batch size"}


@dataclass(frozen=True)
class _Point:
    case: BenchCase
    words: dict[str, str]  # what its line is called after
    interval: Interval


def panels(findings: Findings) -> list[list[Panel]]:
    """A row for each model that has something to draw."""
    precision = [
        _Point(gain.case, {**parts(gain.case), "precision": f"{gain.changed} over {gain.base}"}, gain.speedup)
        for gain in findings.precision_gains
    ]
    efficiency = [_Point(each.case, parts(each.case), each.efficiency) for each in findings.efficiencies]
    details = _detail_points(findings.detail_gains)
    bar = findings.min_efficiency
    rows = []
    for model in dict.fromkeys(point.case.model for point in (*precision, *efficiency, *details)):
        row = [
            _panel(model, precision, "Speed by precision", "samples/s, ratio", reference_y=1.0, reference_label="no gain"),
            _panel(model, efficiency, "Weak scaling", "efficiency", reference_y=bar, reference_label=f"bar at {bar:.0%}"),
            _panel(model, details, "Details of training", "samples/s, ratio", by_ranks=True, reference_y=1.0, reference_label="no gain"),
        ]
        rows.append([panel for panel in row if panel is not None])
    return rows


def _detail_points(gains: Sequence[Gain]) -> list[_Point]:
    """A single process is the first point of the line of every strategy and hook."""
    spread = list(dict.fromkeys(parts(gain.case)["how"] for gain in gains if gain.case.strategy != "single"))
    points = []
    for gain in gains:
        words = parts(replace(gain.case, **{gain.question: DETAILS[gain.question]}))
        hows = spread if gain.case.strategy == "single" and spread else [words["how"]]
        detail = f"{gain.question} {gain.changed} over {gain.base}"
        points += [_Point(gain.case, {"detail": detail, **words, "how": how}, gain.speedup) for how in hows]
    return points


def _panel(
    model: str, points: Sequence[_Point], title: str, y_label: str, *, by_ranks: bool = False, reference_y: float, reference_label: str
) -> Panel | None:
    points = [point for point in points if point.case.model == model]
    if not points:
        return None
    x_of: Callable[[BenchCase], float]
    if by_ranks:
        x_label, part, x_of = "ranks", "ranks", _world_size
    else:
        present = [name for name in _AXES if getattr(points[0].case, name) is not None]  # an image has no sequence length
        axis = max(present, key=lambda name: len({getattr(point.case, name) for point in points}))
        x_label, part = f"{_AXIS_NAMES[axis]}, {UNITS[axis]}", "batch" if axis == "per_device_batch_size" else "size"
        x_of = _value_of(axis)
    shared, differing = split_parts([point.words for point in points], without=(part,))
    lines: dict[str, list[_Point]] = {}
    for point in sorted(points, key=lambda point: x_of(point.case)):
        lines.setdefault(", ".join(filter(None, (point.words[name] for name in differing))), []).append(point)
    return Panel(
        title=f"{title}\n{shared}" if shared else title,
        x_label=x_label,
        y_label=y_label,
        lines=tuple(_line(label, same, x_of) for label, same in lines.items()),
        reference_y=reference_y,
        reference_label=reference_label,
    )


def _line(label: str, points: Sequence[_Point], x_of: Callable[[BenchCase], float]) -> Line:
    intervals = [point.interval for point in points]
    return Line(
        label=label or "measured",
        x=tuple(x_of(point.case) for point in points),
        y=tuple(interval.value for interval in intervals),
        low=tuple(interval.value if interval.low is None else interval.low for interval in intervals),
        high=tuple(interval.value if interval.high is None else interval.high for interval in intervals),
    )


def _world_size(case: BenchCase) -> float:
    return case.world_size


def _value_of(axis: str) -> Callable[[BenchCase], float]:
    return lambda case: float(getattr(case, axis))
