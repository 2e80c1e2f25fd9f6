"""The interval of the median: against published quantiles, and as often right as it says."""

from __future__ import annotations

import random
import statistics

import pytest

from gpualloc.bench.interval import is_tight, median_interval, student_quantile


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (19, 2.093), (100, 1.984)])
def test_students_quantiles(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, rel=3e-3)


@pytest.mark.parametrize("size", [3, 5, 20])
def test_it_holds_the_true_median_in_95_of_100_cases_or_more(size: int) -> None:
    generator = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([generator.gauss(10, 1) for _ in range(size)]) or (0, 0)
        hits += low <= 10 <= high
    assert 0.94 <= hits / 2000 <= 0.99  # the standard error of the share is 0.005


def test_one_value_has_no_interval() -> None:
    assert median_interval([1.0]) is None
    assert not is_tight([1.0], 1.0)


def test_tight_is_half_the_interval_over_the_median() -> None:
    values = [1.0, 1.01, 0.99, 1.0, 1.0]
    low, high = median_interval(values) or (0, 0)
    half = (high - low) / 2 / statistics.median(values)
    assert is_tight(values, half * 1.001)
    assert not is_tight(values, half * 0.999)
