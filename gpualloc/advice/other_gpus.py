"""The same job on kinds of GPU that it was not measured on: carried over by ratios of speed, with wide intervals."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

from gpualloc.advice.evidence import Evidence, work_key
from gpualloc.advice.forecasts import STRATEGIES, StepForecast, forecaster_of, ways_to_spread
from gpualloc.advice.intervals import divided, scaled
from gpualloc.advice.records import Advice, CarriedOver, Option, OtherGpu, RatioSource, RentOf
from gpualloc.errors import UsageError
from gpualloc.findings.rows import usable_rows
from gpualloc.profiling.peaks import find_memory_gb_s
from gpualloc.records import REHEARSAL, BenchCase, Measurement
from gpualloc.scaling import ScalingModel
from gpualloc.scaling.transfer import published_ratio

_SPREAD = ("strategy", "hook", "world_size", *REHEARSAL)


@dataclass(frozen=True, kw_only=True)
class GpuKind:
    """A kind of GPU to answer for; its ratios are over the kind that was measured."""

    device_name: str  # as CUDA gives it
    compute_ratio: float | None = None  # None: of jobs that were measured on both kinds, else of the published memory bandwidths
    link_ratio: float = 1.0


def carry_over(
    advice: Advice,
    kinds: Sequence[GpuKind],
    *,
    evidence: Evidence,
    model: ScalingModel,
    history: Sequence[Measurement],
    gpus_per_node: int,
    rent_of: Callable[[str], tuple[RentOf | None, str | None]],
) -> tuple[OtherGpu, ...]:
    """The advised setting on each kind, for every number of GPUs with a speed.

    Args:
        evidence: what the advice rests on.
        model: fitted to it.
        history: measurements of all kinds of GPU, the newest first.
        rent_of: name of a GPU -> (its price, why there is none).

    Raises:
        UsageError: a kind is the measured one, has no ratio, or no whole GPU was measured.
    """
    case = evidence.rows[0].case
    if case.device != "cuda" or case.ranks_per_gpu != 1:
        raise UsageError(f"what was measured is no whole GPU but {evidence.device_name}; measure one, then ask for others")
    found = []
    for kind in kinds:
        ratio, source, described = _compute_ratio(kind, evidence, history)
        others = model
        for cluster in model.clusters:
            name = kind.device_name + cluster.removeprefix(evidence.device_name)
            given = None if source == "published" else ratio
            others = others.like(name, known=cluster, compute_ratio=given, link_ratio=kind.link_ratio)
        options = _options_in_the_setting(advice)
        forecasts = forecaster_of(others, kind.device_name, gpus_per_node=gpus_per_node)(
            [_spread(option.case, evidence) for option in options]
        )
        rent, why_no_price = rent_of(kind.device_name)
        carried = tuple(_carried(option, forecast, rent) for option, forecast in zip(options, forecasts, strict=True))
        found.append(
            OtherGpu(
                device_name=kind.device_name,
                compute_ratio=ratio,
                link_ratio=kind.link_ratio,
                ratio_source=source,
                described=described,
                rent=rent,
                why_no_price=why_no_price,
                options=carried,
            )
        )
    return tuple(found)


def _carried(option: Option, forecast: StepForecast, rent: RentOf | None) -> CarriedOver:
    """The option on the other kind of GPU, its figures None where they are not known."""
    step, here = forecast.step_time_s, option.samples_per_s
    same: dict[str, Any] = {
        "case": option.case,
        "num_gpus": option.num_gpus,
        "num_nodes": option.num_nodes,
        "memory_bytes": option.memory.num_bytes,
    }
    if step is None or here is None:
        return CarriedOver(**same, kind="refused", note=forecast.reason)
    rate = divided(option.global_batch_size, step)
    num_samples = None if option.time_s is None else option.time_s.value * here.value  # of the whole job
    price_per_sample = None if rent is None else scaled(divided(option.num_gpus, rate), rent.amount_per_gpu_hour / 3600)
    return CarriedOver(
        **same,
        kind="carried over",
        step_time_s=step,
        samples_per_s=rate,
        speedup=scaled(rate, 1 / here.value),
        time_s=None if num_samples is None else divided(num_samples, rate),
        cost=None if num_samples is None or price_per_sample is None else scaled(price_per_sample, num_samples),
        cost_per_million_samples=None if price_per_sample is None else scaled(price_per_sample, 1e6),
    )


def _options_in_the_setting(advice: Advice) -> list[Option]:
    """Of each number of GPUs the fastest that differs from the advised one in the way to spread alone, whose speed is known."""
    chosen = advice.chosen
    if chosen is None:
        return []
    free = (*_SPREAD, *(("per_device_batch_size",) if advice.job.scaling == "strong" else ()))
    setting = work_key(chosen.case, without=free)
    best: dict[int, tuple[float, Option]] = {}
    for option in advice.options:
        if option.samples_per_s is None or option.case.strategy not in ("single", *STRATEGIES):
            continue
        rate, count = option.samples_per_s.value, option.num_gpus
        if work_key(option.case, without=free) == setting and (count not in best or rate > best[count][0]):
            best[count] = rate, option
    return [best[count][1] for count in sorted(best)]


def _spread(case: BenchCase, evidence: Evidence) -> BenchCase:
    """The case as the model knows it: one GPU is part of every way to use several."""
    if case.strategy != "single":
        return case
    strategy, hook, gpus_per_node, link, network = ways_to_spread(evidence)[0]
    return dataclasses.replace(case, strategy=strategy, hook=hook, gpus_per_node=gpus_per_node, link=link, network=network)


def _compute_ratio(kind: GpuKind, evidence: Evidence, history: Sequence[Measurement]) -> tuple[float, RatioSource, str]:
    """(how many times as fast one GPU of the kind computes as one that was measured, where from, the same in words)."""
    known, name = evidence.device_name, kind.device_name
    if name.casefold() == known.casefold():
        raise UsageError(f"{name!r} is what was measured; name another kind of GPU")
    if kind.compute_ratio is not None:
        return kind.compute_ratio, "given", "as given"
    shared = _measured_ratios(name, evidence, history)
    if shared:
        own = shared.get(evidence.rows[0].case.model)
        ratio = own if own is not None else statistics.median(shared.values())
        models = evidence.rows[0].case.model if own is not None else ", ".join(sorted(shared))
        return exp(ratio), "measured", f"one GPU of each, measured with {models}"
    for each in (name, known):
        if find_memory_gb_s(each) is None:
            raise UsageError(
                f"no memory bandwidth is published here for {each!r}, and no job was measured on both {known} and {name}; "
                f"give the name that CUDA gives, such as 'NVIDIA A100-SXM4-80GB', or how many times as fast it is: '{name}:1.9'"
            )
    words = " and ".join(f"{find_memory_gb_s(each):,.0f}" for each in (name, known))
    return published_ratio(name, known)[0], "published", f"published memory bandwidths, {words} GB/s"


def _measured_ratios(name: str, evidence: Evidence, history: Sequence[Measurement]) -> dict[str, float]:
    """Model -> log of the ratio of speeds, of the settings that were measured on one GPU of both kinds."""
    times_s: dict[str, dict[tuple[object, ...], float]] = {evidence.device_name: {}, name: {}}
    models: dict[tuple[object, ...], str] = {}
    for row in usable_rows(history)[0]:
        device = "" if row.environment is None else row.environment.device_name
        if device in times_s and row.case.world_size == 1 and row.case.ranks_per_gpu == 1 and row.step_time_s is not None:
            key = work_key(row.case)
            models[key] = row.case.model
            times_s[device].setdefault(key, row.step_time_s)
    here, there = times_s[evidence.device_name], times_s[name]
    logs: dict[str, list[float]] = {}
    for key in here.keys() & there.keys():
        logs.setdefault(models[key], []).append(log(here[key] / there[key]))
    return {model: statistics.fmean(values) for model, values in logs.items()}


__all__ = ["GpuKind", "carry_over"]
