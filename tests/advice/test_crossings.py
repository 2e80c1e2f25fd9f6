"""Thresholds of efficiencies that are known at points."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpualloc.advice.crossings import threshold_size
from gpualloc.findings import Interval


def around(value: float, half: float = 0.0) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def test_a_known_crossing_with_its_interval() -> None:
    """The line from 70 % at 200 px to 90 % at 400 px crosses 80 % at 300; 2 points up and down it does 20 px earlier and later."""
    found = threshold_size([(200, around(0.7, 0.02)), (400, around(0.9, 0.02))], 0.8)
    assert (found.at, found.low, found.high) == (pytest.approx(300), pytest.approx(280), pytest.approx(320))
    assert found.is_surely_above_at_end
    assert not found.starts_above


def test_ends_that_the_points_do_not_hold() -> None:
    above = threshold_size([(100, around(0.9)), (200, around(0.95))], 0.8)
    assert (above.at, above.starts_above, above.is_surely_above_at_end) == (None, True, True)
    below = threshold_size([(100, around(0.5)), (200, around(0.7, 0.05))], 0.8)
    assert (below.at, below.is_above_at_end, below.is_possibly_above_at_end) == (None, False, False)
    open_above = threshold_size([(100, around(0.5, 0.05)), (200, around(0.82, 0.05))], 0.8)
    assert open_above.at is not None
    assert open_above.low is not None
    assert (open_above.high, open_above.is_surely_above_at_end) == (None, False)


def test_only_the_last_rise_counts() -> None:
    found = threshold_size([(100, around(0.9)), (200, around(0.6)), (300, around(0.8)), (400, around(0.7)), (500, around(0.9))], 0.8)
    assert found.at == pytest.approx(450)


def test_a_single_repeat_gives_no_interval() -> None:
    found = threshold_size([(100, Interval(value=0.7, low=None, high=None)), (200, around(0.9))], 0.8)
    assert (found.at, found.low, found.high) == (pytest.approx(150), None, None)
    assert not found.is_surely_above_at_end
    assert found.is_possibly_above_at_end


points = st.lists(st.tuples(st.floats(0.1, 1.2), st.floats(0, 0.3), st.floats(0, 0.3)), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(figures=points, bar=st.floats(0.3, 1.0), higher=st.floats(0, 0.2))
def test_the_interval_holds_the_threshold_which_rises_with_the_bar(
    figures: list[tuple[float, float, float]], bar: float, higher: float
) -> None:
    series = [
        (100.0 * (index + 1), Interval(value=value, low=value - down, high=value + up)) for index, (value, down, up) in enumerate(figures)
    ]
    found, harder = threshold_size(series, bar), threshold_size(series, bar + higher)
    if found.at is not None:
        assert series[0][0] <= found.at <= series[-1][0]
        assert found.low is None or found.low <= found.at + 1e-9
        assert found.high is None or found.high >= found.at - 1e-9
    if found.at is not None and harder.at is not None:
        assert harder.at >= found.at - 1e-9
    assert found.is_above_at_end or not harder.is_above_at_end
