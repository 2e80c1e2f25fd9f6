"""The scaling model: fitted rows in, forecasts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpualloc.scaling.fit import ClusterFit, fit_cluster, make_design
from gpualloc.scaling.placement import Array
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.records import Forecast, StepQuery, StepRow
from gpualloc.scaling.residuals import Residuals, fit_residuals


@dataclass(frozen=True, kw_only=True)
class FittedCluster:
    fit: ClusterFit
    residuals: dict[str, Residuals]


class ScalingModel:
    def __init__(self, *, rows: Sequence[StepRow], clusters: dict[str, FittedCluster], priors: Priors) -> None:
        self.rows, self.clusters, self.priors = tuple(rows), clusters, priors

    @classmethod
    def fit(cls, rows: Sequence[StepRow], priors: Priors | None = None, targets: Sequence[str] | None = None) -> ScalingModel:
        priors = priors or Priors()
        clusters = {}
        for cluster in sorted({row.cluster for row in rows}):
            mine = [row for row in rows if row.cluster == cluster]
            fit = fit_cluster(mine, priors)
            residuals = {}
            for job in fit.frame.jobs:
                if targets is not None and job.name not in targets:
                    continue
                of_job = [row for row in mine if row.model == job.name]
                design, _ = make_design(of_job, fit.frame, priors)
                step = design.forward(fit.coefficients, fit.level)[0]
                residuals[job.name] = fit_residuals(
                    of_job, np.log([r.step_time_s for r in of_job]) - step, np.full(len(of_job), priors.residual_noise), priors
                )
            clusters[cluster] = FittedCluster(fit=fit, residuals=residuals)
        return cls(rows=rows, clusters=clusters, priors=priors)

    def log_steps(self, queries: Sequence[StepQuery], cluster: str) -> tuple[Array, Array]:
        """(log step time, variance) of queries of one cluster."""
        fitted = self.clusters[cluster]
        design, _ = make_design(queries, fitted.fit.frame, self.priors)
        step, slopes, _, share = design.forward(fitted.fit.coefficients, fitted.fit.level)
        variance = ((slopes @ fitted.fit.covariance) * slopes).sum(1)
        step = step.copy()
        for name in {query.model for query in queries}:
            mine = [i for i, query in enumerate(queries) if query.model == name]
            correction, extra = fitted.residuals[name]([queries[i] for i in mine], self.priors)
            step[mine] += correction
            variance[mine] += extra
        return step, variance
