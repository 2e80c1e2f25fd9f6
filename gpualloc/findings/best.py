"""The fastest setting of each workload."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gpualloc.findings.records import Best
from gpualloc.findings.rows import SIZE_FIELDS, has_nonfinite_loss, speedup
from gpualloc.records import Measurement
from gpualloc.strategies import global_batch_size

_WORKLOAD_FIELDS = ("workload", "model", "data", "tuning", "device", *SIZE_FIELDS)


def best_settings(rows: Sequence[Measurement]) -> tuple[tuple[Best, ...], int]:
    """(for each workload, of one image size or sequence length, and number of ranks the fastest setting, diverged cases left out)."""
    sound = [row for row in rows if not has_nonfinite_loss(row)]
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for row in sound:
        key = (*(getattr(row.case, name) for name in _WORKLOAD_FIELDS), row.case.world_size)
        groups.setdefault(key, []).append(row)
    return tuple(_best(group) for group in groups.values() if len(group) > 1), len(rows) - len(sound)


def _best(group: Sequence[Measurement]) -> Best:
    best = max(group, key=lambda row: speedup(row, group[0]).value)
    others = [row for row in group if row is not best]
    return Best(
        case=best.case,
        samples_per_s=global_batch_size(best.case) / statistics.geometric_mean(best.repeat_step_times_s),
        ties=tuple(row.case for row in others if not speedup(best, row).is_above(1)),
    )
