"""Arithmetic on estimates with intervals."""

from __future__ import annotations

import math

from gpualloc.findings import Interval

# How far a rehearsal is from real ranks, as a logarithm: 90 % of 48 rows lie within. benchmarks/results/rehearsal_*_2026-11-26.json, of
# the step time, and of the efficiency that follows from it (gloo over shaped links, NCCL over TCP and NVLink).
REHEARSED_STEP_ERROR = 0.17
REHEARSED_EFFICIENCY_ERROR = 0.21


def scaled(interval: Interval, factor: float) -> Interval:
    """`interval` x `factor`, which is above 0."""
    return Interval(
        value=interval.value * factor,
        low=None if interval.low is None else interval.low * factor,
        high=None if interval.high is None else interval.high * factor,
    )


def divided(numerator: float, interval: Interval) -> Interval:
    """`numerator` / `interval`, both above 0."""
    return Interval(
        value=numerator / interval.value,
        low=None if interval.high is None else numerator / interval.high,
        high=None if interval.low is None else numerator / interval.low,
    )


def widened(interval: Interval, log_error: float) -> Interval:
    """With an independent relative error, `log_error` to each side."""
    sides = []
    for end in (interval.low, interval.high):
        own = 0.0 if end is None else math.log(end / interval.value)
        sides.append(math.hypot(own, log_error))
    return Interval(value=interval.value, low=interval.value * math.exp(-sides[0]), high=interval.value * math.exp(sides[1]))
