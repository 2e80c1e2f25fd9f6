"""The scaling model: rows in, forecasts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpualloc.errors import UsageError
from gpualloc.scaling.evidence import MIN_ROWS, Evidence
from gpualloc.scaling.fit import NO_LINK, ClusterFit, StepTimes, fit_cluster, make_design
from gpualloc.scaling.placement import ALONE, Array
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.records import BOUND_BY_INPUT, Forecast, StepQuery, StepRow, StepTerms, Suggestion
from gpualloc.scaling.residuals import Residuals, fit_residuals
from gpualloc.scaling.terms import INPUT_GAMMA, overlapped_time
from gpualloc.scaling.transfer import carried_rows, published_ratio, scaled_fit, travelling_means

_LEAST_REST_SHARE = 1e-3
_LIKENESS_SD = 0.35  # of the logarithm of a step time carried over by a ratio: jobs differ in it


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a job's rows come from, if not from the cluster itself."""

    cluster: str
    sd: float  # of the logarithm of all its step times together


@dataclass(frozen=True, kw_only=True)
class LogSteps:
    """Logarithms of seconds, one entry per query."""

    step: Array
    variance: Array  # of the step
    times: StepTimes  # by the equation alone
    rest: Array  # that of the equation, corrected by the residuals


@dataclass(frozen=True, kw_only=True)
class FittedCluster:
    """One cluster's equation and what it left over."""

    fit: ClusterFit
    residuals: dict[str, Residuals]  # of each job
    origins: dict[str, Origin] = field(default_factory=dict)  # of jobs that were not measured here
    like: str | None = None  # the cluster whose rows these are, scaled by ratios that a user gave

    def interval_factor(self, job: str, priors: Priors) -> float:
        """What the variance of the coefficients is multiplied with in the intervals of a job."""
        is_linked = any(key != ALONE for key in self.residuals[job].keys)
        return priors.interval_equation if is_linked else priors.interval_unlinked


class ScalingModel:
    """Step times of jobs on clusters, fitted to rows.

    Attributes:
        rows: those it was fitted to.
        clusters: name -> fit.
    """

    def __init__(self, *, rows: Sequence[StepRow], clusters: dict[str, FittedCluster], priors: Priors) -> None:
        self.rows, self.clusters, self.priors = tuple(rows), clusters, priors
        self._evidence: dict[tuple[str, str], Evidence] = {}

    @classmethod
    def fit(cls, rows: Sequence[StepRow], *, priors: Priors | None = None) -> ScalingModel:
        """Fits every cluster of the rows; with several, a job that one of them lacks is carried over from another.

        Raises:
            UsageError: there are no rows.
        """
        if not rows:
            raise UsageError("no rows to fit a scaling model to; measure some with gpualloc bench, or name a CSV file that has them")
        priors = priors or Priors()
        names = sorted({row.cluster for row in rows})
        mine = {name: [row for row in rows if row.cluster == name] for name in names}
        alone = {name: fit_cluster(mine[name], priors) for name in names}
        if len(names) == 1:
            return cls(rows=rows, clusters={name: _with_residuals(alone[name], mine[name], {}, priors) for name in names}, priors=priors)
        clusters = {}
        for name in names:
            used, origins = list(mine[name]), {}
            for job in sorted({row.model for row in rows}):
                if sum(row.model == job for row in mine[name]) < MIN_ROWS:
                    carried = carried_rows(name, job, rows)
                    if carried is not None:
                        used = [row for row in used if row.model != job] + carried[0]
                        origins[job] = Origin(cluster=carried[2], sd=carried[1])
            means = {
                key: prior
                for key, prior in travelling_means(name, alone, rows).items()
                if key.startswith(tuple(f"{job} " for job in origins))
            }
            fit = fit_cluster(used, priors, means=means) if origins else alone[name]
            clusters[name] = _with_residuals(fit, used, origins, priors)
        return cls(rows=rows, clusters=clusters, priors=priors)

    def predict(self, queries: Sequence[StepQuery]) -> list[Forecast]:
        """One forecast for each query, in order, with a 90 % interval; a refusal where the evidence does not suffice."""
        verdicts = [self.evidence(query.cluster, query.model).judge(query) for query in queries]
        forecasts: list[Forecast | None] = [None] * len(queries)
        for i, (query, (kind, reason)) in enumerate(zip(queries, verdicts, strict=True)):
            if kind == "refused":
                forecasts[i] = Forecast(query=query, step_time_s=None, low_s=None, high_s=None, kind=kind, reason=reason)
        for cluster in {query.cluster for query, (kind, _) in zip(queries, verdicts, strict=True) if kind != "refused"}:
            asked = [i for i, query in enumerate(queries) if query.cluster == cluster and forecasts[i] is None]
            distinct = {queries[i]: None for i in asked}
            place = {query: number for number, query in enumerate(distinct)}
            found = self.log_steps(list(distinct), cluster)
            half = self.priors.interval_quantile * np.sqrt(found.variance)
            answers = list(zip(np.exp([found.step - half, found.step, found.step + half]).T.tolist(), _terms(found), strict=True))
            for i in asked:
                (low, centre, high), terms = answers[place[queries[i]]]
                kind, reason = verdicts[i]
                forecasts[i] = Forecast(
                    query=queries[i],
                    step_time_s=centre,
                    low_s=low,
                    high_s=high,
                    kind=kind,
                    reason=reason,
                    basis=self._basis(queries[i], terms),
                    terms=terms,
                )
        return [forecast for forecast in forecasts if forecast is not None]

    def suggest_next(self, queries: Sequence[StepQuery]) -> list[Suggestion]:
        """The measurements that would narrow the forecasts of these queries most, the best first."""
        from gpualloc.scaling.suggest import suggest

        return suggest(self, queries)

    def like(self, cluster: str, *, known: str, compute_ratio: float | None = None, link_ratio: float = 1.0) -> ScalingModel:
        """This model with one cluster more, as `known` with GPUs and links so many times as fast; intervals are wider there.

        Args:
            cluster: the new one's name, without `compute_ratio` one that begins with its GPU's.
            known: a cluster of the rows.
            compute_ratio: as measured; None: from the published memory bandwidths, with a still wider interval.
            link_ratio: of links.

        Raises:
            UsageError: `known` is not, `cluster` is already, a ratio is not above 0, or none is published.
        """
        if known not in self.clusters or cluster in self.clusters:
            raise UsageError(f"{cluster!r} like {known!r}: the first must be new and the second one of {', '.join(self.clusters)}")
        ratio, sd = (compute_ratio, 0.0) if compute_ratio is not None else published_ratio(cluster, known)
        if not (ratio > 0 and link_ratio > 0):
            raise UsageError(f"ratios {ratio:g} and {link_ratio:g} must be above 0: 2 is twice as fast")
        fit = scaled_fit(self.clusters[known].fit, compute_ratio=ratio, link_ratio=link_ratio)
        origins = {job.name: Origin(cluster=known, sd=float(np.hypot(_LIKENESS_SD, sd))) for job in fit.frame.jobs}
        nothing = {job.name: fit_residuals([], np.zeros(0), np.zeros(0), self.priors) for job in fit.frame.jobs}
        added = FittedCluster(fit=fit, residuals=nothing, origins=origins, like=known)
        return ScalingModel(rows=self.rows, clusters={**self.clusters, cluster: added}, priors=self.priors)

    def save(self, path: Path) -> None:
        """Writes the model as JSON with its schema version."""
        from gpualloc.scaling.model_file import write_model

        write_model(self, path)

    @classmethod
    def load(cls, path: Path) -> ScalingModel:
        """Reads what `save` wrote.

        Raises:
            UsageError: it cannot be read, is of a newer schema, or is not a scaling model.
        """
        from gpualloc.scaling.model_file import read_model

        return read_model(path)

    def evidence(self, cluster: str, job: str) -> Evidence:
        """What was measured of a job on a cluster."""
        if (cluster, job) not in self._evidence:
            fitted = self.clusters.get(cluster)
            source = fitted.like if fitted and fitted.like else cluster
            origin = fitted.origins.get(job) if fitted else None
            self._evidence[cluster, job] = Evidence(
                rows=[row for row in self.rows if row.model == job and row.cluster == (origin.cluster if origin else source)],
                cluster_rows=[row for row in self.rows if row.cluster == source],
                is_carried=origin is not None,
            )
        return self._evidence[cluster, job]

    def log_steps(self, queries: Sequence[StepQuery], cluster: str) -> LogSteps:
        """Step times and how far they may be off, of queries whose cluster and jobs were fitted."""
        fitted, priors = self.clusters[cluster], self.priors
        design, rows = make_design(queries, fitted.fit.frame, priors)
        times = design.forward(fitted.fit.coefficients, fitted.fit.level)
        slopes, corrections = times.slopes, np.zeros(len(queries))
        known, rate_unknown = set(fitted.fit.frame.placements), {job.name for job in fitted.fit.frame.jobs if not job.input_rates}
        is_new = np.array([key not in known for key in rows.places.keys]) * rows.places.is_multi
        variance = is_new * (times.link_share * priors.link_placement) ** 2
        covariance = design.widened(fitted.fit.covariance, priors)
        for name in {query.model for query in queries}:
            mine = np.array([i for i, query in enumerate(queries) if query.model == name])
            used = slopes[mine].any(0)  # the columns of other jobs are 0
            mine_slopes = slopes[np.ix_(mine, used)]
            of_equation = ((mine_slopes @ covariance[np.ix_(used, used)]) * mine_slopes).sum(1)
            variance[mine] += fitted.interval_factor(name, priors) * of_equation
            correction, extra = fitted.residuals[name]([queries[i] for i in mine], priors)
            corrections[mine] = correction
            variance[mine] += priors.interval_residual * extra * (1 - times.input_share[mine]) ** 2
            if name in rate_unknown:
                variance[mine] += (times.input_share[mine] * priors.input_rate) ** 2
            if name in fitted.origins:
                variance[mine] += fitted.origins[name].sd ** 2
        rest = times.rest + corrections
        step = overlapped_time(rest, times.loading, INPUT_GAMMA) + (times.step - times.loaded)
        return LogSteps(step=step, variance=variance + priors.interval_noise**2, times=times, rest=rest)

    def _basis(self, query: StepQuery, terms: StepTerms) -> tuple[str, ...]:
        evidence, fitted = self.evidence(query.cluster, query.model), self.clusters[query.cluster]
        origin = fitted.origins.get(query.model)
        where = f" on {origin.cluster}, carried over" if origin else ""
        told = f", {evidence.num_rehearsed} of them rehearsed" if evidence.num_rehearsed else ""
        others = ", ".join(evidence.other_jobs)
        links = (f"links of {query.cluster} from {others}",) if query.num_gpus > 1 and others else ()
        bound = (
            (f"{BOUND_BY_INPUT}: the loaders of a node do not keep up with {query.fullest_node()} GPUs",) if terms.is_input_bound else ()
        )
        return (f"{len(evidence.rows)} rows of {query.model}{where}{told}", *links, *bound)


def _terms(found: LogSteps) -> list[StepTerms]:
    """The parts of the equation, and as correction what the curve and the residuals add to them."""
    times = found.times
    parts = (times.floor, times.arithmetic, times.alone, times.compute, times.rest, found.rest, found.step)
    floor, arithmetic, alone, compute, rest, corrected, step = map(np.exp, parts)
    comm, exposed = np.where(times.link > NO_LINK, np.exp(times.link), 0.0), rest - compute
    columns = {
        "launch_floor_s": floor,
        "arithmetic_s": arithmetic,
        "contention_s": compute - alone,
        "comm_s": comm,
        "hidden_comm_s": comm - exposed,
        "exposed_comm_s": exposed,
        "input_wait_s": step - corrected,
        "correction_s": alone - floor - arithmetic + corrected - rest,
    }
    return [StepTerms(**dict(zip(columns, row, strict=True))) for row in np.stack(list(columns.values()), 1).tolist()]


def _with_residuals(fit: ClusterFit, rows: Sequence[StepRow], origins: dict[str, Origin], priors: Priors) -> FittedCluster:
    residuals = {}
    for job in fit.frame.jobs:
        mine = [row for row in rows if row.model == job.name]
        design, _ = make_design(mine, fit.frame, priors)
        times = design.forward(fit.coefficients, fit.level)
        rest_share = np.maximum(1 - times.input_share, _LEAST_REST_SHARE)  # a step bound by input tells little of the rest
        left = (np.log([row.step_time_s for row in mine]) - times.step) / rest_share
        noise_row = [priors.noise_single if row.num_gpus == 1 else priors.residual_noise for row in mine]
        noise = np.hypot(noise_row, [priors.noise_rehearsed * (row.source == "rehearsed") for row in mine])
        residuals[job.name] = fit_residuals(mine, left, noise / rest_share, priors)
    return FittedCluster(fit=fit, residuals=residuals, origins=origins)
