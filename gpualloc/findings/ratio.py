"""How many times as fast, with a 95 % interval, from the repeats of measurements.

The logarithms of a measurement's repeats are averaged. A ratio of speeds is a difference of such means; its error follows from the
spread of the repeats, with the degrees of freedom of Welch and Satterthwaite (Welch 1947, Biometrika 34), and Student's t gives the
interval, carried back by exp. It covers what varies within a run, not a machine that was busier during one of the cases.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, 97.5 %, for 1 to 30 degrees of freedom.
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_Z_975 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float | None  # None: a single repeat tells nothing of its error
    high: float | None

    def is_above(self, bar: float) -> bool:
        """Certainly above."""
        return self.low is not None and self.low > bar

    def is_below(self, bar: float) -> bool:
        """Certainly below."""
        return self.high is not None and self.high < bar


def speed_ratio(slower_s: Sequence[Sequence[float]], faster_s: Sequence[Sequence[float]], *, factor: float = 1.0) -> Interval:
    """`factor` x the product of the mean times in `slower_s` / that of those in `faster_s`.

    Args:
        slower_s: for each measurement its repeats' step times, all above 0.
        faster_s: likewise. One on each side gives a speed-up, two the ratio of two speed-ups.
    """
    logs = [(sign, [math.log(time_s) for time_s in times_s]) for sign, side in ((1, slower_s), (-1, faster_s)) for times_s in side]
    estimate = sum(sign * statistics.fmean(values) for sign, values in logs)
    half_width = _half_width([values for _, values in logs])
    if half_width is None:
        return Interval(value=factor * math.exp(estimate), low=None, high=None)
    return Interval(
        value=factor * math.exp(estimate), low=factor * math.exp(estimate - half_width), high=factor * math.exp(estimate + half_width)
    )


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The mean of a[i] - b[i], with Student's t interval: what is common to a pair does not widen it."""
    differences = [ours - theirs for ours, theirs in zip(a, b, strict=True)]
    estimate, half_width = statistics.fmean(differences), _half_width([differences])
    if half_width is None:
        return Interval(value=estimate, low=None, high=None)
    return Interval(value=estimate, low=estimate - half_width, high=estimate + half_width)


def student_t_975(degrees_of_freedom: float) -> float:
    """The 97.5 % quantile, degrees of freedom rounded down, which widens the interval."""
    if degrees_of_freedom < len(_T_975) + 1:
        return _T_975[max(1, int(degrees_of_freedom)) - 1]
    z, n = _Z_975, degrees_of_freedom
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)  # Abramowitz and Stegun 26.7.5, two terms


def _half_width(samples: Sequence[Sequence[float]]) -> float | None:
    """Of the 95 % interval of a sum or difference of the samples' means; None where one of them has a single value."""
    if min(map(len, samples)) < 2:
        return None
    parts = [(statistics.variance(sample) / len(sample), len(sample) - 1) for sample in samples]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    degrees_of_freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return student_t_975(degrees_of_freedom) * math.sqrt(variance)
