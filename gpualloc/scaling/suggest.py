"""The next measurement: the one after which the forecasts asked for would be least uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gpualloc.scaling.fit import make_design
from gpualloc.scaling.records import StepQuery, Suggestion

if TYPE_CHECKING:
    from gpualloc.scaling.model import ScalingModel

_MOST = 5
_LEAST_NARROWING = 0.01


def suggest(model: ScalingModel, queries: Sequence[StepQuery]) -> list[Suggestion]:
    """First what refused queries lack, then the measurements that narrow the others, the best first."""
    found: dict[StepQuery, Suggestion] = {}
    answered: dict[str, list[StepQuery]] = {}
    for query in queries:
        kind, reason = model.evidence(query.cluster, query.model).judge(query)
        if kind == "refused":
            missing = _missing(model, query)
            found.setdefault(missing, Suggestion(query=missing, why=reason or "", narrowing=None))
        else:
            answered.setdefault(query.cluster, []).append(query)
    narrowing = [suggestion for cluster, asked in answered.items() for suggestion in _narrowing(model, cluster, asked)]
    return [*found.values(), *sorted(narrowing, key=lambda suggestion: -(suggestion.narrowing or 0))][: max(_MOST, len(found))]


def _missing(model: ScalingModel, query: StepQuery) -> StepQuery:
    evidence = model.evidence(query.cluster, query.model)
    has_batch = any(row.num_gpus == 1 and row.per_device_batch_size == query.per_device_batch_size for row in evidence.rows)
    if query.num_gpus == 1 or not has_batch:
        return replace(query, num_nodes=1, num_gpus=1, placement="1")
    measured = [row for row in evidence.cluster_rows if row.num_gpus > 1 and (row.num_nodes > 1) == (query.num_nodes > 1)]
    if measured and query.num_nodes == 1:
        num_gpus = min(query.num_gpus, 2 * max(row.num_gpus for row in measured))
        return replace(query, num_gpus=num_gpus, placement=str(num_gpus))
    if query.num_nodes == 1:
        return replace(query, num_gpus=2, placement="2")
    return replace(query, num_nodes=2, num_gpus=2, placement="11")


def _narrowing(model: ScalingModel, cluster: str, queries: Sequence[StepQuery]) -> list[Suggestion]:
    """How much each candidate would shrink the mean log-interval of the queries, by the fit's covariance."""
    measured = {_plain(row) for row in model.rows if row.cluster == cluster}
    candidates = [candidate for candidate in _candidates(queries) if _plain(candidate) not in measured]
    if not candidates:
        return []
    fitted, priors = model.clusters[cluster], model.priors
    now = model.log_steps(queries, cluster)[1]
    asked, tried = (
        make_design(part, fitted.fit.frame, priors)[0].forward(fitted.fit.coefficients, fitted.fit.level)[1] for part in (queries, candidates)
    )
    shared = priors.interval_equation * asked @ fitted.fit.covariance @ tried.T  # [queries, candidates]
    own = priors.interval_equation * ((tried @ fitted.fit.covariance) * tried).sum(1) + priors.noise_step**2
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


def _plain(query: StepQuery) -> StepQuery:
    """The query of a row, the same for all placements that are one."""
    from dataclasses import fields

    values = {field.name: getattr(query, field.name) for field in fields(StepQuery)}
    return StepQuery(**values)
