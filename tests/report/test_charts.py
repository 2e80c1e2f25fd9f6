"""Geometry of the charts: what is drawn lies inside, where the figures say, and labels do not run into each other."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from gpualloc.report.charts import Bar, BarChart, Lane, LaneChart, LineChart, Point, Reference, Series, Span
from gpualloc.report.charts.scale import round_ticks, shortened, text_px, tick_text

LINES = LineChart(
    x_label="number of GPUs",
    y_label="speed-up",
    series=tuple(
        Series(label=f"<{name}>", points=(Point(1, 1), Point(2, 1.9, 1.8, 2.0), Point(4, 3.1 + place / 10, 2.9, 3.4)))
        for place, name in enumerate("abc")
    ),
    references=(Reference(label="ideal", kind="ideal", points=((1, 1), (4, 4))),),
    y_unit="x",
    x_ticks=(1, 2, 4),
    mark=(2.0, "threshold"),
)
BARS = BarChart(
    x_label="change, %",
    unit="%",
    bars=(
        Bar(label="fp16", value=0.5, low=0.4, high=0.6, text="+50%"),
        Bar(label="a very long name of a setting, channels_last", value=-0.1, low=-0.2, high=0.01, text="-10%"),
    ),
)
LANES = LaneChart(
    x_label="h",
    lanes=(Lane(name="node 1", spans=(Span(start=0, end=2, label="job", colour=0), Span(start=2, end=9, label="b", colour=9))),),
    colours=(),
)


@pytest.mark.parametrize("chart", [LINES, BARS, LANES], ids=["lines", "bars", "lanes"])
@pytest.mark.parametrize("width_px", [330.0, 500.0, 900.0])
def test_everything_lies_inside_and_is_described(chart: LineChart | BarChart | LaneChart, width_px: float) -> None:
    root = ElementTree.fromstring(chart.svg(width_px=width_px, title="Title & <b>", description="What it shows", name="n"))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert width == width_px
    assert [root.find("title").text, root.find("desc").text] == ["Title & <b>", "What it shows"]  # type: ignore[union-attr]
    assert root.get("aria-labelledby") == "n-t n-d"
    for each in root.iter("text"):
        size = text_px(each.text or "")
        start = float(each.get("x", 0)) - size * {"start": 0.0, "middle": 0.5, "end": 1.0}[each.get("text-anchor", "start")]
        assert start >= -1.0, each.text
        assert start + size <= width + 1.0, each.text
        assert 0 < float(each.get("y", 0)) <= height
    for each in root.iter("rect"):
        assert float(each.get("x", 0)) >= 0
        assert float(each.get("x", 0)) + float(each.get("width", 0)) <= width + 0.2


def test_points_stand_where_their_figures_are() -> None:
    svg = LINES.svg(width_px=500, title="t", description="d", name="n")
    lines = {style: (float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2, style in re.findall(_LINE, svg)}
    ideal = lines["ideal"]
    path = next(iter(re.findall(r'<path d="M([\d. L-]+)" class="l c0 d0"', svg)))
    (x1, y1), _, (x4, y4) = [tuple(map(float, pair.split())) for pair in path.split("L")]
    assert (x1, y1) == ideal[:2]
    assert x4 == ideal[2]
    assert (y1 - y4) / (ideal[1] - ideal[3]) == pytest.approx(2.1 / 3, abs=0.01)


_LINE = r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="([\w -]+)"'


def test_bars_begin_at_zero_on_both_sides() -> None:
    svg = BARS.svg(width_px=900, title="t", description="d", name="n")
    (x_up, width_up), (x_down, width_down) = [
        tuple(map(float, pair)) for pair in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="16.0" class="b', svg)
    ]
    assert x_up == pytest.approx(x_down + width_down, abs=0.2)
    assert width_up / width_down == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 4.08, [0, 1, 2, 3, 4, 5]), (-0.05, 0.04, None), (3, 3, [3]), (0, 1e-9, None)],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, ticks: list[float] | None) -> None:
    found = round_ticks(low, high, 5)
    assert found[0] <= low
    assert found[-1] >= high - 1e-12
    assert len(found) <= 7
    assert ticks is None or found == pytest.approx(ticks)
    labels = [tick_text(value, found) for value in found]
    assert len(set(labels)) == len(labels) or high < 1e-6


def test_texts() -> None:
    assert [tick_text(value, [0, 0.2, 0.4], "%") for value in (0, 0.2, 0.4)] == ["0%", "20%", "40%"]
    assert tick_text(1.5, [1, 1.5], "x") == "1.5×"
    assert [tick_text(value, [0, 0.25, 0.5]) for value in (0.25, 0.75)] == ["0.25", "0.75"]  # and not 0.2 and 0.8
    assert tick_text(7.5, [0, 2.5]) == "7.5"
    assert shortened("channels_last", 40) == "chan…"
    assert shortened("ok", 40) == "ok"
    assert text_px("割に合う") == 48
