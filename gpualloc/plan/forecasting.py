"""Rates that nobody has measured, from the scaling model fitted to those that were."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from gpualloc.plan.rates import ForecastAnswer, Forecaster, ForecastQuery
from gpualloc.records import Measurement


def make_forecaster(measurements: Sequence[Measurement]) -> Forecaster | None:
    """None where there is nothing to forecast from. The model is fitted when it is first asked."""
    if not measurements:
        return None
    from gpualloc.scaling.store_rows import rows_of_measurements

    rows, _ = rows_of_measurements(measurements)
    if not rows:
        return None
    fitted: list[Any] = []
    known = {(row.cluster, row.model) for row in rows}

    def forecast(queries: Sequence[ForecastQuery]) -> list[ForecastAnswer]:
        from gpualloc.scaling import ScalingModel, StepQuery

        if not fitted:
            fitted.append(ScalingModel.fit(rows))
        names = [field.name for field in dataclasses.fields(StepQuery)]
        asked = []
        for query in queries:
            row = _row_of(query, measurements, known)
            per_node = query.case.world_size // query.num_nodes
            fields = {name: getattr(row, name) for name in names}
            placed = {"num_nodes": query.num_nodes, "placement": "+".join([str(per_node)] * query.num_nodes)}
            asked.append(StepQuery(**{**fields, **placed}))
        return [_answer(each) for each in fitted[0].predict(asked)]

    return forecast


def _row_of(query: ForecastQuery, measurements: Sequence[Measurement], known: Collection[tuple[str, str]]) -> Any:
    """How the scaling model would call a measurement of what is asked; of a job that it has only alone, that one."""
    from gpualloc.plan.cluster_file import is_same_device
    from gpualloc.scaling.store_rows import rows_of_measurements

    environment = next(
        row.environment
        for row in measurements
        if row.environment is not None and is_same_device(query.node, row.environment.device_name, row.case.device)
    )
    alone = dataclasses.replace(query.case, strategy="single", hook="none")
    rows = []
    for case in (query.case, alone):
        rows += rows_of_measurements([Measurement(case=case, status="ok", step_time_s=1.0, environment=environment)])[0]
    return next((row for row in rows if (row.cluster, row.model) in known), rows[0])


def _answer(forecast: Any) -> ForecastAnswer:
    if forecast.step_time_s is None:
        return ForecastAnswer(step_time_s=None, reason=forecast.reason or forecast.kind)
    low, high = forecast.low_s or forecast.step_time_s, forecast.high_s or forecast.step_time_s
    return ForecastAnswer(step_time_s=(forecast.step_time_s, low, high), reason=forecast.kind)
