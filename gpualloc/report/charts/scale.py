"""What all charts share: axes in round steps, the room a text needs, and the frame of an SVG."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterable, Sequence

from markupsafe import Markup

NUM_COLOURS = 8  # .c0 to .c7 of the style sheet
FONT_PX = 12.0
LINE_PX = 16.0
_ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def text_px(text: str, font_px: float = FONT_PX) -> float:
    """About how wide a text is: figures and Latin letters 0.6 em, as in wide fonts, CJK 1 em."""
    return sum(font_px * (1.0 if unicodedata.east_asian_width(char) in "WF" else 0.6) for char in text)


def shortened(text: str, room_px: float) -> str:
    """The text, its end replaced by an ellipsis where it does not fit."""
    if text_px(text) <= room_px:
        return text
    while text and text_px(text + "…") > room_px:
        text = text[:-1]
    return text + "…" if text else ""


def round_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Round values from `low` to `high` or just beyond, at most `at_most` + 1 of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / at_most))
    step = next(power * factor for factor in (*_ROUND_STEPS, 20.0) if span / (power * factor) <= at_most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_text(value: float, ticks: Sequence[float], unit: str = "") -> str:
    """A tick's text, with as many decimals as tell the ticks apart; "%" and "x" are units that are written beside it."""
    scale = 100.0 if unit == "%" else 1.0
    step = min((abs(b - a) for a, b in itertools.pairwise(ticks) if b != a), default=abs(value) or 1.0) * scale
    decimals = next((places for places in range(6) if math.isclose(step, round(step, places), rel_tol=1e-3)), 6)
    suffix = {"%": "%", "x": "×"}.get(unit, "")
    return f"{value * scale:,.{decimals}f}{suffix}"


def position(value: float, low: float, high: float, start_px: float, end_px: float) -> float:
    """Where a value lies on an axis, in pixels to a tenth."""
    share = 0.5 if high == low else (value - low) / (high - low)
    return round(start_px + share * (end_px - start_px), 1)


def svg_frame(content: Iterable[Markup], *, width_px: float, height_px: float, title: str, description: str, name: str) -> Markup:
    """The SVG element, with title and description for those who do not see it.

    Args:
        name: unique in the page.
    """
    return Markup(
        '<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {width:.0f} {height:.0f}" '
        'width="{width:.0f}" height="{height:.0f}">'
        '<title id="{name}-t">{title}</title><desc id="{name}-d">{description}</desc>{content}</svg>'
    ).format(name=name, width=width_px, height=height_px, title=title, description=description, content=Markup("").join(content))


def text(x: float, y: float, content: str, *, anchor: str = "start", style: str = "") -> Markup:
    """`anchor`: "start", "middle" or "end"."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, style, content)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, style)


def rectangle(x: float, y: float, width: float, height: float, style: str, tooltip: str = "") -> Markup:
    inside = Markup("<title>{}</title>").format(tooltip) if tooltip else ""
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}">{}</rect>').format(
        x, y, max(width, 0.0), height, style, inside
    )


_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "M0 -4.8L4.8 0L0 4.8L-4.8 0Z",
    "M0 -4.6L4.4 3.4H-4.4Z",
    "M0 4.6L4.4 -3.4H-4.4Z",
    "M-4 -1.4H-1.4V-4H1.4V-1.4H4V1.4H1.4V4H-1.4V1.4H-4Z",
)


def marker(x: float, y: float, index: int, tooltip: str = "") -> Markup:
    """The sign of the series with that number, at a point."""
    inside = Markup("<title>{}</title>").format(tooltip) if tooltip else ""
    return Markup('<path d="{}" transform="translate({:.1f} {:.1f})" class="m c{}">{}</path>').format(
        _MARKERS[index % len(_MARKERS)], x, y, index % NUM_COLOURS, inside
    )


def swatch(index: int, kind: str) -> Markup:
    """A legend's sign.

    Args:
        kind: "line" with the series' marker, "fill", or the class of a reference line.
    """
    if kind == "line":
        content = line(0, 7, 26, 7, f"l c{index % NUM_COLOURS} d{index // NUM_COLOURS % 2}") + marker(13, 7, index)
    elif kind == "fill":
        content = rectangle(5, 1, 16, 12, f"b c{index % NUM_COLOURS} p{index // NUM_COLOURS % 2}")
    else:
        content = line(0, 7, 26, 7, kind)
    return Markup('<svg class="swatch" viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">{}</svg>').format(content)
