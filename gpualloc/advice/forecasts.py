"""Options on numbers of GPUs that nobody ran, from gpualloc.scaling's model of the rows there are."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpualloc.advice.evidence import Evidence, work_key
from gpualloc.advice.intervals import divided
from gpualloc.advice.job import Job
from gpualloc.advice.options import baseline, memory_of
from gpualloc.advice.records import Option, Source
from gpualloc.findings import Interval
from gpualloc.records import REHEARSAL, BenchCase, Measurement
from gpualloc.scaling import Forecast, ScalingModel, StepQuery, StepRow
from gpualloc.scaling.records import BOUND_BY_INPUT
from gpualloc.scaling.store_rows import gradient_bytes, input_samples_per_s
from gpualloc.strategies import global_batch_size

STRATEGIES = ("ddp", "fsdp", "hsdp")  # whose steps are computing and collectives over all ranks
_GRID = 25  # sizes at which a threshold is looked for between the smallest and the largest measured


@dataclass(frozen=True, kw_only=True)
class StepForecast:
    """Of one case; where it is refused there is no step time and `reason` says what to measure."""

    step_time_s: Interval | None  # 90 %
    kind: str  # "interpolates", "extrapolates" or "refused"
    reason: str | None
    basis: tuple[str, ...]


Forecaster = Callable[[Sequence[BenchCase]], list[StepForecast]]


def fit_steps(evidence: Evidence, others: Sequence[Measurement], *, gpus_per_node: int) -> ScalingModel:
    """The scaling model of the evidence's workload.

    Args:
        others: rows of other models on the same device, from which the link's behaviour is learned.
        gpus_per_node: where a case does not say.
    """
    return ScalingModel.fit([step_row for row in (*evidence.rows, *others) for step_row in _step_rows(row, evidence, gpus_per_node)])


def forecaster_of(model: ScalingModel, device_name: str, *, gpus_per_node: int) -> Forecaster:
    """Forecasts for cases on that device, one that was measured or that the model takes to be like it."""

    def forecast(cases: Sequence[BenchCase]) -> list[StepForecast]:
        return [_from(each) for each in model.predict([_query(case, device_name, gpus_per_node) for case in cases])]

    return forecast


def forecast_options(
    evidence: Evidence,
    job: Job,
    *,
    counts: Sequence[int],
    known: Sequence[Option],
    forecaster: Forecaster,
    device_memory_bytes: int | None,
    gpus_per_node: int,
) -> list[Option]:
    """An option for each setting of one GPU on each of the counts that has no row of it; refused ones say why."""
    have = {work_key(option.case) for option in known}
    cases = [case for case in _cases(evidence, job, counts) if work_key(case) not in have]
    options = []
    for case, forecast in zip(cases, forecaster(cases) if cases else [], strict=True):
        step = forecast.step_time_s
        base = baseline(case, evidence.rows, job)
        samples = global_batch_size(case)
        efficiency = None
        if step is not None and base is not None:
            alone_s = statistics.geometric_mean(base.repeat_step_times_s) / global_batch_size(base.case)
            efficiency = divided(alone_s * samples / case.world_size, step)
        options.append(
            Option(
                case=case,
                source="forecast",
                num_gpus=case.world_size,
                num_nodes=_num_nodes(case, gpus_per_node),
                global_batch_size=samples,
                memory=memory_of(case, evidence.rows, device_memory_bytes),
                samples_per_s=None if step is None else divided(samples, step),
                speedup=None if efficiency is None else _times(efficiency, case.world_size),
                efficiency=efficiency,
                forecast_kind=forecast.kind,
                basis=forecast.basis,
                note=_note(forecast, has_baseline=base is not None),
            )
        )
    return options


def _note(forecast: StepForecast, *, has_baseline: bool) -> str | None:
    if forecast.step_time_s is None:
        return forecast.reason
    if not has_baseline:
        return "one GPU in this setting was not measured"
    return next((words for words in forecast.basis if words.startswith(BOUND_BY_INPUT)), None)


def forecast_points(
    evidence: Evidence, case: BenchCase, counts: Sequence[int], forecaster: Forecaster
) -> list[tuple[BenchCase, Interval, Source]]:
    """Efficiency of the case's setting between the smallest and the largest size measured, on each of the counts."""
    measured = [
        row.case
        for row in evidence.rows
        if row.case.world_size == 1 and work_key(row.case, without=_setting_free(evidence)) == _key(case, evidence)
    ]
    sizes = sorted({int(getattr(each, evidence.size_field)) for each in measured})
    if len(sizes) < 2:
        return []
    grid = sorted({round(sizes[0] + (sizes[-1] - sizes[0]) * index / (_GRID - 1)) for index in range(_GRID)})
    points: list[tuple[BenchCase, Interval, Source]] = []
    alone_times = forecaster([_resized(case, 1, evidence.size_field, size) for size in grid])
    for count in counts:
        cases = [_resized(case, count, evidence.size_field, size) for size in grid]
        for each, one, many in zip(cases, alone_times, forecaster(cases), strict=True):
            if one.step_time_s is not None and many.step_time_s is not None:
                points.append((each, divided(one.step_time_s.value, many.step_time_s), "forecast"))
    return points


def _setting_free(evidence: Evidence) -> tuple[str, ...]:
    return ("strategy", "hook", "world_size", *REHEARSAL, evidence.size_field)


def _key(case: BenchCase, evidence: Evidence) -> tuple[object, ...]:
    return work_key(case, without=_setting_free(evidence))


def _resized(case: BenchCase, world_size: int, field: str, size: int) -> BenchCase:
    changes: dict[str, Any] = {"world_size": world_size, field: size}
    return dataclasses.replace(case, **changes)


def ways_to_spread(evidence: Evidence) -> list[tuple[str, str, int | None, str | None, str | None]]:
    """(strategy, hook, GPUs of a rehearsed node, its link, its network) of all that was measured, ddp without a hook where nothing was."""
    spread = [row.case for row in evidence.rows if row.case.world_size > 1 and row.case.strategy in STRATEGIES]
    ways = list(dict.fromkeys((case.strategy, case.hook, case.gpus_per_node, case.link, case.network) for case in spread))
    return ways or [("ddp", "none", None, None, None)]


def _cases(evidence: Evidence, job: Job, counts: Sequence[int]) -> list[BenchCase]:
    """Every setting of one GPU with every way to spread it that was measured, ddp without a hook where none was."""
    singles = [row.case for row in evidence.at_size if row.case.world_size == 1 and row.case.strategy == "single"]
    cases: dict[tuple[object, ...], BenchCase] = {}
    for single in singles:
        for strategy, hook, gpus_per_node, link, network in ways_to_spread(evidence):
            for count in counts:
                if count == 1 or (gpus_per_node is not None and count > gpus_per_node and (network is None or count % gpus_per_node)):
                    continue
                batch = single.per_device_batch_size
                if job.global_batch_size is not None:
                    batch, rest = divmod(job.global_batch_size, count * single.grad_accum_steps)
                    if rest or batch == 0:
                        continue
                where: dict[str, Any] = {"gpus_per_node": gpus_per_node, "link": link, "network": network}
                how: dict[str, Any] = {"strategy": strategy, "hook": hook, "world_size": count, "per_device_batch_size": batch}
                case = dataclasses.replace(single, **how, **where)
                cases.setdefault(work_key(case), case)
    return list(cases.values())


def _step_rows(row: Measurement, evidence: Evidence, gpus_per_node: int) -> list[StepRow]:
    """A row for the model; one GPU stands for itself in every way to spread it and on every cluster."""
    case = row.case
    if row.step_time_s is None or (case.world_size > 1 and case.strategy not in STRATEGIES):
        return []
    if case.world_size > 1:
        as_cases = [case]
    else:
        as_cases = [
            dataclasses.replace(case, strategy=strategy, hook=hook, gpus_per_node=nodes, link=link, network=network)
            for strategy, hook, nodes, link, network in ways_to_spread(evidence)
        ]
    return [
        StepRow(
            **_described(each, evidence.device_name, gpus_per_node),
            step_time_s=row.step_time_s,
            sync_time_s=row.exposed_comm_s if case.world_size > 1 else None,
            input_samples_per_s=input_samples_per_s(row, each),
            source="rehearsed" if case.is_rehearsed else "measured",
        )
        for each in as_cases
    ]


def _query(case: BenchCase, device_name: str, gpus_per_node: int) -> StepQuery:
    return StepQuery(**_described(case, device_name, gpus_per_node))


def _described(case: BenchCase, device_name: str, gpus_per_node: int) -> dict[str, Any]:
    """What rows and queries share. Ways to spread a model differ in the bytes they send, so each is a job of its own."""
    details = " ".join(f"{name}={value}" for name, value in case.details().items())
    return {
        "cluster": " ".join(filter(None, [device_name, case.cluster()])),
        "model": " ".join(filter(None, [case.model, f"{case.strategy}/{case.hook}", details])),
        "num_nodes": _num_nodes(case, gpus_per_node),
        "num_gpus": case.world_size,
        "placement": _placement(case, gpus_per_node),
        "per_device_batch_size": case.per_device_batch_size,
        "image_size_px": case.image_size_px,
        "sequence_length": case.sequence_length,
        "precision": case.precision,
        "gradient_bytes": gradient_bytes(case),
    }


def _num_nodes(case: BenchCase, gpus_per_node: int) -> int:
    return math.ceil(case.world_size / (case.gpus_per_node or gpus_per_node))


def _placement(case: BenchCase, gpus_per_node: int) -> str:
    """GPUs on each node, full ones first: "8+8+4"."""
    per_node = case.gpus_per_node or gpus_per_node
    full, rest = divmod(case.world_size, per_node)
    return "+".join([*[str(per_node)] * full, *([str(rest)] if rest else [])])


def _times(interval: Interval, factor: float) -> Interval:
    return divided(factor, divided(1.0, interval))


def _from(forecast: Forecast) -> StepForecast:
    step = None
    if forecast.step_time_s is not None:
        step = Interval(value=forecast.step_time_s, low=forecast.low_s, high=forecast.high_s)
    return StepForecast(step_time_s=step, kind=forecast.kind, reason=forecast.reason, basis=tuple(forecast.basis))
