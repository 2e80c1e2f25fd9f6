"""Where an efficiency with an interval rises through a bar for good: the threshold, with an interval of its own.

The efficiency is a function of a size, known at points and straight between them. Its threshold is the smallest size from which on it stays
at the bar or above. The same of the interval's upper end is the earliest the threshold can be, of its lower end the latest: a 95 %
interval of the efficiency at every size gives one of at least 95 % for the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpualloc.findings import Interval


@dataclass(frozen=True)
class Rise:
    """Where a curve rises through the bar for good."""

    at: float | None  # None: it is above from the first point on, or below at the last
    is_above_at_end: bool


def last_rise(sizes: Sequence[float], figures: Sequence[float], bar: float) -> Rise:
    """The last rise of the polyline through the points.

    Args:
        sizes: in ascending order.
        figures: of the same length, at least 1.
    """
    if figures[-1] < bar:
        return Rise(None, False)
    below = [index for index, figure in enumerate(figures) if figure < bar]
    if not below:
        return Rise(None, True)
    index = below[-1]
    low, high = figures[index], figures[index + 1]
    share = (bar - low) / (high - low)
    return Rise(sizes[index] + (sizes[index + 1] - sizes[index]) * share, True)


@dataclass(frozen=True, kw_only=True)
class ThresholdSize:
    """Of an efficiency. `at`, `low` and `high` are None where the points do not hold them: the flags say why."""

    at: float | None
    low: float | None
    high: float | None
    starts_above: bool  # the efficiency is at the bar or above at every point
    is_above_at_end: bool
    is_surely_above_at_end: bool  # of the lower ends; False where a point has none
    is_possibly_above_at_end: bool  # of the upper ends; True where a point has none


def threshold_size(points: Sequence[tuple[float, Interval]], bar: float) -> ThresholdSize:
    """The threshold of the polyline through (size, efficiency), sizes ascending, at least one point."""

    def rise(figure: Callable[[Interval], float | None]) -> Rise | None:
        figures = [figure(interval) for _, interval in points]
        known = [each for each in figures if each is not None]
        return last_rise([size for size, _ in points], known, bar) if len(known) == len(points) else None

    middle = rise(lambda interval: interval.value)
    upper, lower = rise(lambda interval: interval.high), rise(lambda interval: interval.low)
    assert middle is not None
    return ThresholdSize(
        at=middle.at,
        low=None if upper is None else upper.at,
        high=None if lower is None else lower.at,
        starts_above=middle.is_above_at_end and middle.at is None,
        is_above_at_end=middle.is_above_at_end,
        is_surely_above_at_end=lower is not None and lower.is_above_at_end,
        is_possibly_above_at_end=upper is None or upper.is_above_at_end,
    )
