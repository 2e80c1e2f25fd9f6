"""Lying bars: one figure each with its interval, or parts that add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from gpualloc.report.blocks import LegendEntry
from gpualloc.report.charts.scale import (
    FONT_PX,
    NUM_COLOURS,
    line,
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

_BAR_PX, _GAP_PX, _LABEL_ROW_PX = 16.0, 10.0, 17.0


@dataclass(frozen=True, kw_only=True)
class Bar:
    label: str
    value: float
    text: str  # the figure as it is written behind the bar
    low: float | None = None
    high: float | None = None
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a stacked bar, for each bar its size."""

    label: str
    values: tuple[float, ...]
    colour: int


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """Bars from `base` on, or stacks of parts where `parts` are given (then `bars` hold label, whole and text)."""

    x_label: str
    bars: tuple[Bar, ...]
    parts: tuple[Part, ...] = ()
    unit: str = ""  # "%" of a fraction, "x" of a ratio
    base: float = 0.0  # where bars begin: 1 for ratios of speed
    colours: tuple[tuple[int, str], ...] = ()  # what a colour of the bars means, where it means anything

    def svg(self, *, width_px: float, title: str, description: str, name: str) -> Markup:
        height_px = 30.0 + len(self.bars) * self._row_px(width_px) + 34.0
        content = self._content(width_px, height_px)
        return svg_frame(content, width_px=width_px, height_px=height_px, title=title, description=description, name=name)

    def legend(self) -> tuple[LegendEntry, ...]:
        labels = self.colours or tuple((part.colour, part.label) for part in self.parts)
        return tuple(LegendEntry(label=label, swatch=swatch(place, "fill")) for place, label in labels)

    def _stacks_labels(self, width_px: float) -> bool:
        """Whether labels stand above their bars: where they would leave too little room beside them."""
        return max(text_px(bar.label) for bar in self.bars) > width_px * 0.36

    def _row_px(self, width_px: float) -> float:
        return _BAR_PX + _GAP_PX + (_LABEL_ROW_PX if self._stacks_labels(width_px) else 0.0)

    def _content(self, width_px: float, height_px: float) -> Iterator[Markup]:
        above = self._stacks_labels(width_px)
        left = 4.0 if above else 10.0 + max(text_px(bar.label) for bar in self.bars)
        values = [value for bar in self.bars for value in (bar.value, bar.low, bar.high) if value is not None]
        low, high = min(self.base, *values), max(self.base, *values)
        ticks = round_ticks(low, high if high > low else low + 1, 4)
        room_px = 10.0 + max(text_px(bar.text) for bar in self.bars)
        right, top, bottom = width_px - room_px, 24.0, height_px - 34.0
        ends_px = min(right + room_px - text_px(tick_text(ticks[-1], ticks, self.unit)) / 2, right)

        def x_px(value: float) -> float:
            return position(value, ticks[0], ticks[-1], left, ends_px)

        yield text(0, FONT_PX, shortened(self.x_label, width_px), style="axis")
        for tick in ticks:
            yield line(x_px(tick), top, x_px(tick), bottom, "grid")
            label = tick_text(tick, ticks, self.unit)
            yield text(max(x_px(tick), text_px(label) / 2 + 3), bottom + 17, label, anchor="middle", style="tick")
        yield line(x_px(self.base), top, x_px(self.base), bottom, "axis-line")
        row_px = self._row_px(width_px)
        for place, bar in enumerate(self.bars):
            y = top + place * row_px + _GAP_PX / 2
            if above:
                yield text(left, y + 12, shortened(bar.label, width_px - left), style="label")
                y += _LABEL_ROW_PX
            else:
                yield text(left - 6, y + 12, bar.label, anchor="end", style="label")
            yield from self._parts(place, y, x_px) if self.parts else self._bar(bar, y, x_px)
            end = max(x_px(max(value for value in (bar.value, bar.high, self.base) if value is not None)), left)
            yield text(end + 6, y + 12, bar.text, style="value")

    def _bar(self, bar: Bar, y: float, x_px: object) -> Iterator[Markup]:
        assert callable(x_px)
        start, end = sorted((x_px(self.base), x_px(bar.value)))
        yield rectangle(start, y, max(end - start, 1.0), _BAR_PX, f"b c{bar.colour % NUM_COLOURS}", f"{bar.label}: {bar.text}")
        if bar.low is not None and bar.high is not None:
            middle = y + _BAR_PX / 2
            yield line(x_px(bar.low), middle, x_px(bar.high), middle, "whisker")
            for value in (bar.low, bar.high):
                yield line(x_px(value), middle - 4, x_px(value), middle + 4, "whisker")

    def _parts(self, place: int, y: float, x_px: object) -> Iterator[Markup]:
        assert callable(x_px)
        start = 0.0
        for part in self.parts:
            value = part.values[place]
            tooltip = f"{self.bars[place].label}, {part.label}: {tick_text(value, [0, 0.01], self.unit)}"
            style = f"b c{part.colour}"
            yield rectangle(x_px(start), y, x_px(start + value) - x_px(start), _BAR_PX, style, tooltip)
            start += value
