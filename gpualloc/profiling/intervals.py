"""Sets of points in time as float64 arrays [N, 2] of starts and ends, sorted and disjoint; the unit is the caller's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Intervals: TypeAlias = NDArray[np.float64]  # [N, 2]

EMPTY: Intervals = np.empty((0, 2))


def union(pairs: Iterable[tuple[float, float]] | Intervals) -> Intervals:
    """All points in any of the (start, end) pairs, which may overlap and come in any order; empty and reversed pairs are dropped."""
    array = np.asarray(pairs if isinstance(pairs, np.ndarray) else list(pairs), dtype=np.float64).reshape(-1, 2)
    array = array[array[:, 1] > array[:, 0]]
    if not len(array):
        return EMPTY
    array = array[np.argsort(array[:, 0], kind="stable")]
    reach = np.maximum.accumulate(array[:, 1])  # how far any interval so far goes
    is_first = np.concatenate(([True], array[1:, 0] > reach[:-1]))
    starts = np.flatnonzero(is_first)
    ends = np.concatenate((starts[1:], [len(array)])) - 1
    return np.column_stack((array[starts, 0], reach[ends]))


def joined(*sets: Intervals) -> Intervals:
    """Points in any of the sets."""
    return union(np.concatenate(sets)) if sets else EMPTY


def without(a: Intervals, b: Intervals) -> Intervals:
    """Points of `a` that are not in `b`."""
    if not len(a) or not len(b):
        return a
    low, high = float(a[0, 0]), float(a[-1, 1])
    gaps = np.column_stack((np.concatenate(([min(low, float(b[0, 0]))], b[:, 1])), np.concatenate((b[:, 0], [max(high, float(b[-1, 1]))]))))
    return common(a, gaps[gaps[:, 1] > gaps[:, 0]])


def common(a: Intervals, b: Intervals) -> Intervals:
    """Points in both."""
    if not len(a) or not len(b):
        return EMPTY
    # For each interval of `a` the run of those of `b` that reach into it.
    first = np.searchsorted(b[:, 1], a[:, 0], side="right")
    last = np.searchsorted(b[:, 0], a[:, 1], side="left")
    counts = np.maximum(last - first, 0)
    of_a = np.repeat(np.arange(len(a)), counts)
    of_b = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return np.column_stack((np.maximum(a[of_a, 0], b[of_b, 0]), np.minimum(a[of_a, 1], b[of_b, 1])))


def length(a: Intervals) -> float:
    """Of all intervals together."""
    return float((a[:, 1] - a[:, 0]).sum())
