"""Interval sets against sets of whole numbers, where every operation is obvious."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gpualloc.profiling.intervals import Intervals, common, joined, length, union, without

PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12)


def points(pairs: list[tuple[int, int]]) -> set[int]:
    return {point for start, end in pairs for point in range(start, end)}


def covered(intervals: Intervals) -> set[int]:
    assert all(start < end for start, end in intervals)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(intervals)), "not disjoint"
    return points([(int(start), int(end)) for start, end in intervals])


@given(PAIRS, PAIRS)
def test_every_operation_is_that_of_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    one, other = union(a), union(b)
    assert covered(one) == points(a)
    assert covered(joined(one, other)) == points(a) | points(b)
    assert points([(int(s), int(e)) for s, e in common(one, other)]) == points(a) & points(b)
    assert points([(int(s), int(e)) for s, e in without(one, other)]) == points(a) - points(b)
    assert length(one) == len(points(a))
    assert length(without(one, other)) + length(common(one, other)) == length(one)
