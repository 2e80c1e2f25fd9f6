"""How certain a median of few repeats is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_NORMAL = 1.959964  # 97.5 % quantile of the normal distribution
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182}  # degrees of freedom -> 97.5 % quantile of Student's t, where the series below is too coarse
_MEDIAN_OVER_MEAN = math.sqrt(math.pi / 2)  # standard error of a normal sample's median over that of its mean


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the median of normally distributed repeats; None for fewer than two.

    median -+ t(97.5 %, n - 1) * sqrt(pi / 2) * s / sqrt(n), with s the standard deviation. The factor holds for many repeats and is
    on the safe side for few.
    """
    if len(values) < 2:
        return None
    half = student_quantile(len(values) - 1) * _MEDIAN_OVER_MEAN * statistics.stdev(values) / math.sqrt(len(values))
    median = statistics.median(values)
    return median - half, median + half


def is_tight(values: Sequence[float], target: float) -> bool:
    """Whether half the interval is at most `target`, a fraction of the median."""
    interval = median_interval(values)
    return interval is not None and (interval[1] - interval[0]) / 2 <= target * statistics.median(values)


def student_quantile(degrees: int) -> float:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5: within 0.3 % from 4 degrees of freedom on."""
    if degrees in _STUDENT:
        return _STUDENT[degrees]
    z = _NORMAL
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return math.fsum(term / degrees**power for power, term in enumerate(terms))
