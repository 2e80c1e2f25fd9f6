"""What happens when: spans of time on lanes, for one training step or for the jobs of a cluster."""

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

_LANE_PX, _GAP_PX, _NAME_ROW_PX = 20.0, 8.0, 17.0
_MIN_SPAN_PX = 0.6
_DARK_COLOURS = (0, 1, 2, 3, 6)  # of the light theme: white is readable on them


@dataclass(frozen=True, kw_only=True)
class Span:
    start: float
    end: float
    label: str
    colour: int


@dataclass(frozen=True, kw_only=True)
class Lane:
    name: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class LaneChart:
    x_label: str
    lanes: tuple[Lane, ...]
    colours: tuple[str, ...]  # what each colour stands for; () where the lanes say it
    lane_px: float = _LANE_PX

    def svg(self, *, width_px: float, title: str, description: str, name: str) -> Markup:
        height_px = 30.0 + len(self.lanes) * self._row_px(width_px) + 34.0
        content = self._content(width_px, height_px)
        return svg_frame(content, width_px=width_px, height_px=height_px, title=title, description=description, name=name)

    def legend(self) -> tuple[LegendEntry, ...]:
        return tuple(LegendEntry(label=label, swatch=swatch(place, "fill")) for place, label in enumerate(self.colours))

    def _names_above(self, width_px: float) -> bool:
        return max(text_px(lane.name) for lane in self.lanes) > width_px * 0.25

    def _row_px(self, width_px: float) -> float:
        return self.lane_px + _GAP_PX + (_NAME_ROW_PX if self._names_above(width_px) else 0.0)

    def _content(self, width_px: float, height_px: float) -> Iterator[Markup]:
        above = self._names_above(width_px)
        left = 4.0 if above else 10.0 + max(text_px(lane.name) for lane in self.lanes)
        right, top, bottom = width_px - 16.0, 24.0, height_px - 34.0
        end = max((span.end for lane in self.lanes for span in lane.spans), default=1.0)
        ticks = round_ticks(0.0, end, max(3, int(width_px / 100)))

        def x_px(value: float) -> float:
            return position(min(max(value, 0.0), end), 0.0, end, left, right)

        yield text(0, FONT_PX, shortened(self.x_label, width_px), style="axis")
        for tick in (tick for tick in ticks if tick <= end):
            yield line(x_px(tick), top, x_px(tick), bottom, "grid")
            label = tick_text(tick, ticks)
            yield text(
                min(max(x_px(tick), text_px(label) / 2), width_px - text_px(label) / 2), bottom + 17, label, anchor="middle", style="tick"
            )
        for place, lane in enumerate(self.lanes):
            y = top + place * self._row_px(width_px) + _GAP_PX / 2
            if above:
                yield text(left, y + 12, shortened(lane.name, width_px - left), style="label")
                y += _NAME_ROW_PX
            else:
                yield text(left - 6, y + self.lane_px / 2 + 4, lane.name, anchor="end", style="label")
            yield rectangle(left, y, right - left, self.lane_px, "lane")
            for span in lane.spans:
                start, width = x_px(span.start), max(x_px(span.end) - x_px(span.start), _MIN_SPAN_PX)
                style = f"b c{span.colour % NUM_COLOURS} p{span.colour // NUM_COLOURS % 2}"
                yield rectangle(start, y, width, self.lane_px, style, span.label)
                written = shortened(span.label, width - 6) if width > 30 and self.lane_px >= FONT_PX + 4 else ""
                if len(written) > 2 or written == span.label:
                    yield text(
                        start + 3, y + self.lane_px / 2 + 4, written, style="on-bar" if span.colour in _DARK_COLOURS else "on-light-bar"
                    )
        yield line(left, bottom, right, bottom, "axis-line")
