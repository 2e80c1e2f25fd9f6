"""Efficiency over image size, sequence length or batch size, and where it crosses the bar for each number of GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.advice.crossings import threshold_size
from gpualloc.advice.evidence import Evidence, work_key
from gpualloc.advice.job import Job
from gpualloc.advice.options import baseline, efficiency_of
from gpualloc.advice.records import Crossing, Source
from gpualloc.findings import Interval
from gpualloc.records import BenchCase

AXES = ("image_size_px", "sequence_length", "per_device_batch_size")


def efficiency_points(evidence: Evidence) -> list[tuple[BenchCase, Interval, Source]]:
    """Weak-scaling efficiency of every row on several GPUs, of all sizes, that has one GPU to compare with."""
    points: list[tuple[BenchCase, Interval, Source]] = []
    for row in evidence.rows:
        base = baseline(row.case, evidence.rows, Job())
        if row.case.world_size > 1 and base is not None:
            points.append((row.case, efficiency_of(row, base), "rehearsed" if row.case.is_rehearsed else "measured"))
    return points


def crossings(points: Sequence[tuple[BenchCase, Interval, Source]], *, min_efficiency: float) -> tuple[Crossing, ...]:
    """For every series of two or more values of an axis, everything else being equal, where it crosses the bar.

    Args:
        points: of measured, rehearsed or forecast cases; of several of one size the first counts.
    """
    found = []
    for axis in AXES:
        series: dict[tuple[object, ...], dict[int, tuple[BenchCase, Interval, Source]]] = {}
        for case, efficiency, source in points:
            if getattr(case, axis) is not None:
                by_size = series.setdefault(work_key(case, without=(axis,)), {})
                by_size.setdefault(int(getattr(case, axis)), (case, efficiency, source))
        found += [_crossing(axis, by_size, min_efficiency) for by_size in series.values() if len(by_size) > 1]
    return tuple(sorted(found, key=lambda crossing: (AXES.index(crossing.axis), crossing.case.world_size)))


def _crossing(axis: str, by_size: dict[int, tuple[BenchCase, Interval, Source]], bar: float) -> Crossing:
    sizes = sorted(by_size)
    threshold = threshold_size([(size, by_size[size][1]) for size in sizes], bar)
    return Crossing(
        axis=axis,
        case=by_size[sizes[-1]][0],
        bar=bar,
        smallest=sizes[0],
        largest=sizes[-1],
        verdict="from the smallest on" if threshold.starts_above else "crosses" if threshold.is_above_at_end else "not up to the largest",
        value=threshold.at,
        low=threshold.low,
        high=threshold.high,
        is_sure_at_largest=threshold.is_surely_above_at_end,
        is_possible_at_largest=threshold.is_possibly_above_at_end,
        has_intervals=all(efficiency.low is not None for _, efficiency, _ in by_size.values()),
        sources=tuple(dict.fromkeys(source for _, _, source in by_size.values())),
    )
