"""Whether more ranks pay, and from which image size, sequence length or batch size on. Scaling is weak: fixed work per rank."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.findings.records import Efficiency, Threshold
from gpualloc.findings.rows import SIZE_FIELDS, rows_apart_by, speedup
from gpualloc.records import BenchCase, Measurement

_PAYS, _FAILS = "pays", "does not pay"


def efficiencies(rows: Sequence[Measurement], *, min_efficiency: float) -> tuple[tuple[Efficiency, ...], int]:
    """(efficiency of every case on several ranks, how many such cases lack a baseline).

    The baseline is the same case as a single process, or else on one rank of the same strategy and hook.
    """
    found, num_without = [], 0
    for group in rows_apart_by(rows, "strategy", "hook", "world_size"):
        for row in sorted((row for row in group if row.case.world_size > 1), key=lambda row: row.case.world_size):
            base = _baseline(row, group)
            if base is None:
                num_without += 1
                continue
            efficiency = speedup(row, base)
            if efficiency.low is None:
                verdict = "not certain"
            elif efficiency.is_below(min_efficiency):
                verdict = _FAILS
            else:
                verdict = _PAYS if efficiency.low >= min_efficiency else "too close to call"
            found.append(Efficiency(case=row.case, efficiency=efficiency, verdict=verdict))
    return tuple(found), num_without


def thresholds(found: Sequence[Efficiency], *, min_efficiency: float) -> tuple[Threshold, ...]:
    """For every series of two or more values of an axis, where it begins to pay."""
    result = []
    for axis in (*SIZE_FIELDS, "per_device_batch_size"):
        series: dict[tuple[object, ...], list[Efficiency]] = {}
        for each in found:
            if getattr(each.case, axis) is not None:
                key = tuple(item for item in vars(each.case).items() if item[0] != axis)
                series.setdefault(key, []).append(each)
        result += [_threshold(axis, points, min_efficiency) for points in series.values() if len(points) > 1]
    return tuple(result)


def _baseline(row: Measurement, group: Sequence[Measurement]) -> Measurement | None:
    def is_alone(other: Measurement) -> bool:
        case: BenchCase = other.case
        return case.world_size == 1 and (case.strategy, case.hook) in (("single", "none"), (row.case.strategy, row.case.hook))

    return min((other for other in group if is_alone(other)), key=lambda other: other.case.strategy != "single", default=None)


def _threshold(axis: str, series: Sequence[Efficiency], min_efficiency: float) -> Threshold:
    points = sorted(series, key=lambda point: getattr(point.case, axis))
    values = [int(getattr(point.case, axis)) for point in points]
    first = len(points)  # from here on all of them pay
    while first > 0 and points[first - 1].verdict == _PAYS:
        first -= 1
    last_failing = max((index for index in range(first) if points[index].verdict == _FAILS), default=None)
    begin = last_failing or 0
    return Threshold(
        axis=axis,
        case=points[-1].case,
        smallest=values[0],
        largest=values[-1],
        fails_at=None if last_failing is None else values[last_failing],
        pays_from=values[first] if first < len(points) else None,
        estimate=_crossing(values[begin : first + 1], [point.efficiency.value for point in points[begin : first + 1]], min_efficiency),
        uncertain=tuple(values[begin + (last_failing is not None) : first]),
    )


def _crossing(values: Sequence[int], figures: Sequence[float], bar: float) -> float | None:
    """Where the line through the points last rises through the bar."""
    for index in reversed(range(len(values) - 1)):
        low, high = figures[index], figures[index + 1]
        if low < bar <= high:
            return values[index] + (values[index + 1] - values[index]) * (bar - low) / (high - low)
    return None
