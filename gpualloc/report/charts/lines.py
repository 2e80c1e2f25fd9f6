"""Curves over an axis of numbers: markers with intervals, reference lines, a marked value."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from gpualloc.report.blocks import LegendEntry
from gpualloc.report.charts.scale import (
    FONT_PX,
    LINE_PX,
    NUM_COLOURS,
    line,
    marker,
    position,
    rectangle,
    round_ticks,
    shortened,
    svg_frame,
    swatch,
    text,
    text_px,
    tick_text,
)

_MAX_MARKED_POINTS = 60  # of a series: beyond it a plain line reads better


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A line to compare with. `kind` is the class that draws it: "ideal" or "bar"."""

    label: str
    kind: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Intervals are drawn as bars through the points, or as bands where a series has many."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()
    y_unit: str = ""  # "%" of a fraction, "x" of a ratio
    x_ticks: tuple[float, ...] | None = None  # None: round steps
    mark: tuple[float, str] | None = None  # (x, text): a dotted line upwards
    y_range: tuple[float, float] | None = None
    height_px: float = 320.0

    def svg(self, *, width_px: float, title: str, description: str, name: str) -> Markup:
        return svg_frame(
            self._content(width_px), width_px=width_px, height_px=self.height_px, title=title, description=description, name=name
        )

    def legend(self) -> tuple[LegendEntry, ...]:
        entries = [LegendEntry(label=each.label, swatch=swatch(place, "line")) for place, each in enumerate(self.series)]
        return (*entries, *(LegendEntry(label=each.label, swatch=swatch(0, each.kind)) for each in self.references))

    def _content(self, width_px: float) -> Iterator[Markup]:
        xs = [point.x for each in self.series for point in each.points] + [x for each in self.references for x, _ in each.points]
        ys = [y for each in self.series for point in each.points for y in (point.y, point.low, point.high) if y is not None]
        ys += [y for each in self.references for _, y in each.points]
        y_low, y_high = self.y_range or (min(0.0, *ys), max(ys) * 1.02 if max(ys) > 0 else 1.0)
        y_ticks = round_ticks(y_low, y_high, 5)
        y_labels = [tick_text(value, y_ticks, self.y_unit) for value in y_ticks]
        left, right = 14.0 + max(map(text_px, y_labels)), width_px - 16.0
        top, bottom = 24.0, self.height_px - 44.0
        x_low, x_high = min(xs), max(xs)
        if x_low == x_high:
            x_low, x_high = x_low - 1, x_high + 1
        if self.x_ticks is None:
            x_ticks = [tick for tick in round_ticks(x_low, x_high, max(3, int(width_px / 90))) if x_low <= tick <= x_high]
        else:
            x_ticks = list(self.x_ticks)

        def x_px(value: float) -> float:
            return position(value, x_low, x_high, left + 8, right - 8)

        def y_px(value: float) -> float:
            return position(min(max(value, y_ticks[0]), y_ticks[-1]), y_ticks[0], y_ticks[-1], bottom, top)

        yield text(0, FONT_PX, shortened(self.y_label, width_px), style="axis")
        for value, label in zip(y_ticks, y_labels, strict=True):
            yield line(left, y_px(value), right, y_px(value), "grid")
            yield text(left - 6, y_px(value) + 4, label, anchor="end", style="tick")
        free_from = -1e9
        for value in x_ticks:
            label = tick_text(value, x_ticks)
            half = text_px(label) / 2
            yield line(x_px(value), bottom, x_px(value), bottom + 4, "axis-line")
            if x_px(value) - half >= free_from:
                yield text(min(x_px(value), width_px - half), bottom + 17, label, anchor="middle", style="tick")
                free_from = x_px(value) + half + 6
        yield line(left, bottom, right, bottom, "axis-line")
        yield text((left + right) / 2, self.height_px - 8, shortened(self.x_label, right - left), anchor="middle", style="axis")
        for reference in self.references:
            for (x1, y1), (x2, y2) in itertools.pairwise(reference.points):
                yield line(x_px(x1), y_px(y1), x_px(x2), y_px(y2), reference.kind)
        if self.mark is not None and x_low <= self.mark[0] <= x_high:
            yield from self._mark(x_px(self.mark[0]), top, bottom, left, right)
        for place, series in enumerate(self.series):
            yield from _series(place, series, x_px, y_px, self.y_unit)

    def _mark(self, x: float, top: float, bottom: float, left: float, right: float) -> Iterator[Markup]:
        assert self.mark is not None
        yield line(x, top, x, bottom, "mark")
        label = shortened(self.mark[1], right - left)
        width = text_px(label)
        at = min(max(x - width / 2, left), right - width)
        yield rectangle(at - 3, bottom - LINE_PX - 6, width + 6, LINE_PX + 2, "paper")
        yield text(at, bottom - 8, label, style="mark-text")


def _series(place: int, series: Series, x_px: object, y_px: object, y_unit: str) -> Iterator[Markup]:
    assert callable(x_px)
    assert callable(y_px)
    style = f"c{place % NUM_COLOURS} d{place // NUM_COLOURS % 2}"
    is_dense = len(series.points) > _MAX_MARKED_POINTS
    # Series that share an x would hide each other's interval: each is a little to the side.
    has_intervals = any(point.low is not None for point in series.points)
    aside = 0.0 if is_dense or not has_intervals else ((place + 1) // 2) * (3.0 if place % 2 else -3.0)
    coordinates = [(x_px(point.x) + aside, y_px(point.y)) for point in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in coordinates)
    yield Markup('<path d="{}" class="l {}"/>').format(path, style)
    if is_dense:
        return
    for (x, y), point in zip(coordinates, series.points, strict=True):
        if point.low is not None and point.high is not None:
            low, high = y_px(point.low), y_px(point.high)
            yield line(x, low, x, high, f"i {style}")
            if low - high > 4:
                yield line(x - 4, low, x + 4, low, f"i {style}") + line(x - 4, high, x + 4, high, f"i {style}")
        yield marker(x, y, place, f"{series.label}: {tick_text(point.x, [0, 1])}, {tick_text(point.y, [0, 0.01], y_unit)}")
