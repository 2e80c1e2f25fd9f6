"""Several policies on the same traces, with 95 % intervals over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpualloc.bench.interval import student_quantile
from gpualloc.plan.protocol import Cluster, Policy
from gpualloc.plan.simulation.engine import simulate
from gpualloc.plan.simulation.job_types import JobType
from gpualloc.plan.simulation.metrics import Summary, summarise
from gpualloc.plan.simulation.records import SimulationOptions, SimulationRun
from gpualloc.plan.simulation.trace import TraceJob

COMPARED = (
    "mean_jct_h",
    "p50_jct_h",
    "p99_jct_h",
    "makespan_h",
    "gpu_hours",
    "mean_restarts",
    "utilisation",
    "p99_fairness",
    "worst_fairness",
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over traces and its 95 % interval by Student's t, cut at 0, below which none is; low and high are None for one trace."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean=mean, low=None, high=None)
        half = student_quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(mean=mean, low=max(0.0, mean - half), high=mean + half)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    summaries: Mapping[str, tuple[Summary, ...]]  # policy -> by seed
    first_runs: Mapping[str, SimulationRun]  # policy -> the run of the first seed, for its timeline

    def interval(self, policy: str, figure: str) -> Interval:
        """Of one figure of `Summary` over the seeds."""
        return Interval.of([getattr(summary, figure) for summary in self.summaries[policy]])

    def ratio(self, policy: str, reference: str, figure: str) -> Interval:
        """Of the figure to the reference's on the same trace: the traces' differences cancel."""
        pairs = zip(self.summaries[policy], self.summaries[reference], strict=True)
        return Interval.of([getattr(one, figure) / max(getattr(other, figure), 1e-12) for one, other in pairs])


def compare(
    policies: Sequence[Policy],
    traces: Mapping[int, tuple[TraceJob, ...]],
    job_types: dict[str, JobType],
    cluster: Cluster,
    options: SimulationOptions,
    *,
    prices_per_hour: Mapping[str, float] | None = None,
    tell: Callable[[str, Summary | None], None] = lambda what, summary: None,
) -> Comparison:
    """Every policy on every trace; errors and failures are drawn with the trace's seed, the same for all policies.

    Args:
        tell: called before each simulation, with None, and after it.
    """
    summaries: dict[str, list[Summary]] = {policy.name: [] for policy in policies}
    first: dict[str, SimulationRun] = {}
    for seed, trace in traces.items():
        for policy in policies:
            what = f"{policy.name}, seed {seed}, {len(trace)} jobs"
            tell(what, None)
            run = simulate(policy, trace, job_types, cluster, replace(options, seed=seed))
            first.setdefault(policy.name, run)
            summaries[policy.name].append(summarise(run, trace, job_types, cluster, prices_per_hour))
            tell(what, summaries[policy.name][-1])
    return Comparison(summaries={name: tuple(rows) for name, rows in summaries.items()}, first_runs=first)
