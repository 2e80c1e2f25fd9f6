"""What a run answers: measurements in, findings with 95 % intervals out. Pure functions; nothing here reads a file or prints."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.findings.best import best_settings
from gpualloc.findings.gains import detail_gains, detail_trends, precision_gains
from gpualloc.findings.ratio import Interval
from gpualloc.findings.records import DEFAULT_MIN_EFFICIENCY, Best, Efficiency, Findings, Gain, Threshold, Trend
from gpualloc.findings.rows import usable_rows
from gpualloc.findings.scaling import efficiencies, thresholds
from gpualloc.records import Measurement

__all__ = ["DEFAULT_MIN_EFFICIENCY", "Best", "Efficiency", "Findings", "Gain", "Interval", "Threshold", "Trend", "find"]


def find(measurements: Sequence[Measurement], *, min_efficiency: float = DEFAULT_MIN_EFFICIENCY) -> Findings:
    """The findings of a run.

    Args:
        measurements: of one machine.
        min_efficiency: the bar above which more ranks pay, as a fraction.
    """
    rows, excluded = usable_rows(measurements)
    found, num_without_baseline = efficiencies(rows, min_efficiency=min_efficiency)
    best, num_diverged = best_settings(rows)
    return Findings(
        min_efficiency=min_efficiency,
        precision_gains=precision_gains(rows),
        efficiencies=found,
        thresholds=thresholds(found, min_efficiency=min_efficiency),
        detail_gains=detail_gains(rows),
        detail_trends=detail_trends(rows),
        best=best,
        num_without_baseline=num_without_baseline,
        num_diverged=num_diverged,
        excluded=excluded,
    )
