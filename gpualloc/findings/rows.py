"""Which measurements count, and which of them differ in one thing only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from gpualloc.findings.ratio import Interval, speed_ratio
from gpualloc.records import BenchCase, Measurement
from gpualloc.strategies import global_batch_size

SIZE_FIELDS = ("image_size_px", "sequence_length")


def usable_rows(measurements: Sequence[Measurement]) -> tuple[list[Measurement], dict[str, int]]:
    """(the measurements that count, why others do not -> how many)."""
    usable, excluded = [], Counter[str]()
    for row in measurements:
        reason = _unusable_reason(row)
        if reason is None:
            usable.append(row)
        else:
            excluded[reason] += 1
    return usable, dict(excluded)


def setting(case: BenchCase) -> dict[str, Any]:
    """The case's fields; what depends on the device, resolved."""
    fields = dict(vars(case))  # asdict copies deeply, which takes minutes for 10,000 rows
    fields["pin_memory"] = case.device == "cuda" if case.pin_memory is None else case.pin_memory
    return fields


def rows_apart_by(rows: Iterable[Measurement], *names: str) -> list[list[Measurement]]:
    """The rows in groups that differ in these fields of their cases alone."""
    groups: dict[Hashable, list[Measurement]] = {}
    for row in rows:
        key = tuple(item for item in setting(row.case).items() if item[0] not in names)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def speedup(changed: Measurement, base: Measurement) -> Interval:
    """Samples per second and rank of one case over those of the other: with fixed work per rank, 1 where more ranks cost nothing.

    Samples that several ranks read alike count once, as those of "ddp_full_data".
    """
    work = global_batch_size(changed.case) / changed.case.world_size / (global_batch_size(base.case) / base.case.world_size)
    return speed_ratio([base.repeat_step_times_s], [changed.repeat_step_times_s], factor=work)


def ratio_of_speedups(changed: Measurement, base: Measurement, other_changed: Measurement, other_base: Measurement) -> Interval:
    """speedup(changed, base) / speedup(other_changed, other_base), where both pairs change the same field."""
    return speed_ratio(
        [base.repeat_step_times_s, other_changed.repeat_step_times_s], [changed.repeat_step_times_s, other_base.repeat_step_times_s]
    )


def has_nonfinite_loss(row: Measurement) -> bool:
    """Whether the training diverged while it was measured."""
    return not all(math.isfinite(loss) for loss in (row.loss_start, row.loss_end) if loss is not None)


def _unusable_reason(row: Measurement) -> str | None:
    if row.status != "ok":
        return row.status
    if getattr(row, "disturbances", ()):
        return "disturbed"
    times_s = row.repeat_step_times_s
    if not times_s or not all(math.isfinite(time_s) and time_s > 0 for time_s in times_s):
        return "without usable times"
    return None
