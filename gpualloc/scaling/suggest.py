"""The next measurement: the one after which the forecasts asked for, or a threshold, would be least uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from math import erf
from typing import TYPE_CHECKING

import numpy as np

from gpualloc.scaling.fit import make_design
from gpualloc.scaling.records import StepQuery, Suggestion

if TYPE_CHECKING:
    from gpualloc.scaling.model import ScalingModel

_MOST = 5
_LEAST_NARROWING = 0.01
_DOUBT = 0.5  # probability that a forecast tells nothing of where in a series the bar is passed: benchmarks/replay_study.py


def suggest(model: ScalingModel, queries: Sequence[StepQuery]) -> list[Suggestion]:
    """First what refused queries lack, then the measurements that narrow the others, the best first."""
    found: dict[StepQuery, Suggestion] = {}
    answered: dict[str, list[StepQuery]] = {}
    for query in queries:
        kind, reason = model.evidence(query.cluster, query.model).judge(query)
        if kind == "refused":
            missing = _plain(model.evidence(query.cluster, query.model).missing(query))
            found.setdefault(missing, Suggestion(query=missing, why=reason or "", narrowing=None))
        else:
            answered.setdefault(query.cluster, []).append(query)
    narrowing = [suggestion for cluster, asked in answered.items() for suggestion in _narrowing(model, cluster, asked)]
    return [*found.values(), *sorted(narrowing, key=lambda suggestion: -(suggestion.narrowing or 0))][: max(_MOST, len(found))]


def suggest_crossing(model: ScalingModel, series: Sequence[tuple[StepQuery, StepQuery]], min_efficiency: float) -> int | None:
    """Where in a series to measure next to find from where on several GPUs keep an efficiency, which rises along it.

    A measurement that may come out either way with the same probability tells most (its entropy is largest). So it is the place up to
    which the efficiency passes the bar with half of the probability, given that it does between the ends. A forecast may be wrong in ways
    that its interval does not hold: half of the probability is that of halving, with every place as likely.

    Args:
        series: (on one GPU, on several) for each place, all on one cluster; the first is known to fail and the last to pay.

    Returns:
        Its index, not of the ends; None: they have nothing between, or there is not enough evidence.
    """
    inner = len(series) - 2
    alone, several = ([forecast.step_time_s for forecast in model.predict(queries)] for queries in zip(*series, strict=True))
    if inner < 1 or None in alone or None in several:
        return None
    # The error of one GPU is in both and cancels.
    variances = model.log_steps([query for _, query in series], series[0][1].cluster).variance
    margins = np.log(np.array(alone, dtype=float) / np.array(several, dtype=float) / min_efficiency) / np.sqrt(variances)
    pays = np.maximum.accumulate([0.5 * (1 + erf(margin / 2**0.5)) for margin in margins])
    anywhere = np.arange(1, inner + 1) / (inner + 1)
    passed = (pays[1:-1] - pays[0]) / max(pays[-1] - pays[0], 1e-9)
    return 1 + int(np.abs((1 - _DOUBT) * passed + _DOUBT * anywhere - 0.5).argmin())


def _narrowing(model: ScalingModel, cluster: str, queries: Sequence[StepQuery]) -> list[Suggestion]:
    """How much each candidate would shrink the mean log-interval of the queries, by the fit's covariance."""
    measured = {_without_rate(row) for row in model.rows if row.cluster == cluster}
    candidates = [candidate for candidate in _candidates(queries) if _without_rate(candidate) not in measured]
    if not candidates:
        return []
    fitted, priors = model.clusters[cluster], model.priors
    now = model.log_steps(queries, cluster).variance
    designs = [make_design(part, fitted.fit.frame, priors)[0] for part in (queries, candidates)]
    factors = [np.sqrt([fitted.interval_factor(query.model, priors) for query in part]) for part in (queries, candidates)]
    asked, tried = (
        factor[:, None] * design.forward(fitted.fit.coefficients, fitted.fit.level).slopes
        for design, factor in zip(designs, factors, strict=True)
    )
    covariance = designs[0].widened(fitted.fit.covariance, priors)
    shared = asked @ covariance @ tried.T  # [queries, candidates]
    own = ((tried @ covariance) * tried).sum(1) + priors.noise_step**2
    after = np.maximum(now[:, None] - shared**2 / own[None], priors.interval_noise**2)
    gains = 1 - np.sqrt(after).mean(0) / np.sqrt(now).mean()
    return [
        Suggestion(
            query=candidate,
            why=f"it would narrow the {len(queries)} forecasts asked for on {cluster} by {gain:.0%} on average",
            narrowing=float(gain),
        )
        for candidate, gain in zip(candidates, gains, strict=True)
        if gain >= _LEAST_NARROWING
    ]


def _candidates(queries: Sequence[StepQuery]) -> list[StepQuery]:
    """What could be run for these queries: themselves, and the same job and batch on fewer GPUs."""
    found: dict[StepQuery, None] = {}
    for query in queries:
        smaller = [(1, 1, "1"), (1, 2, "2"), (2, 2, "11"), (1, 4, "4"), (2, 4, "22"), (2, 8, "44"), (4, 4, "1111")]
        for num_nodes, num_gpus, placement in smaller:
            per_node = -(-query.num_gpus // query.num_nodes)
            if num_nodes <= query.num_nodes and num_gpus <= query.num_gpus and num_gpus // num_nodes <= per_node:
                found[_plain(replace(query, num_nodes=num_nodes, num_gpus=num_gpus, placement=placement))] = None
        found[_plain(query)] = None
    return list(found)


def _without_rate(query: StepQuery) -> StepQuery:
    """The loaders' rate is found, not chosen: rows of one setting differ in it."""
    return replace(_plain(query), input_samples_per_s=None)


def _plain(query: StepQuery) -> StepQuery:
    """The query of a row, the same for all placements that are one."""
    values = {field.name: getattr(query, field.name) for field in fields(StepQuery)}
    return StepQuery(**values)
