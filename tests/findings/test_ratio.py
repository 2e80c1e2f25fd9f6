"""Intervals of ratios: against scipy's t, a textbook case, and by how often they hold the truth."""

import math
import random
import statistics

import pytest

from gpualloc.findings.ratio import paired_difference, speed_ratio, student_t_975


def test_student_t_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 31), 31, 40, 100, 10**6):
        assert student_t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-3)


def test_a_paired_difference_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5]
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    ours = paired_difference(a, b)
    assert ours.value == pytest.approx(statistics.fmean(a) - statistics.fmean(b))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-4)
    assert paired_difference([1.0], [2.0]).low is None


def test_an_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    random.seed(0)
    hits, rounds = 0, 2000
    for _ in range(rounds):
        slow = [math.exp(random.gauss(math.log(2.0), 0.05)) for _ in range(5)]
        fast = [math.exp(random.gauss(0.0, 0.01)) for _ in range(4)]
        ratio = speed_ratio([slow], [fast])
        assert ratio.low is not None
        assert ratio.high is not None
        hits += ratio.low <= 2.0 <= ratio.high
    assert 0.94 <= hits / rounds <= 0.975  # 95 %, give or take 1 % of chance; more where freedom was rounded down


def test_a_single_repeat_has_no_interval() -> None:
    ratio = speed_ratio([[2.0]], [[1.0, 1.1]])
    assert (ratio.low, ratio.high) == (None, None)
    assert not ratio.is_above(1)
    assert not ratio.is_below(10**9)


def test_equal_repeats_leave_no_doubt() -> None:
    ratio = speed_ratio([[3.0, 3.0]], [[1.5, 1.5]])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_ratio_of_ratios() -> None:
    ratio = speed_ratio([[2.0, 2.0], [3.0, 3.0]], [[1.0, 1.0], [1.5, 1.5]], factor=0.5)
    assert ratio.value == pytest.approx(2.0)
