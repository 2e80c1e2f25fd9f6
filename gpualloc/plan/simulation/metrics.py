"""What a simulation came to: completion times, makespan, GPU-hours, restarts, utilisation, fairness, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gpualloc.plan.choices import shapes_of
from gpualloc.plan.protocol import Cluster
from gpualloc.plan.simulation.job_types import JobType
from gpualloc.plan.simulation.records import FinishedJob, SimulationRun
from gpualloc.plan.simulation.trace import TraceJob


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Times in hours. Fairness: completion time over that on a share of the cluster of the job's own (below 1: better off sharing)."""

    policy: str
    num_jobs: int
    mean_jct_h: float
    p50_jct_h: float
    p99_jct_h: float
    makespan_h: float
    gpu_hours: float
    mean_restarts: float
    utilisation: float  # GPU time held over GPU time there was
    mean_fairness: float
    p99_fairness: float
    worst_fairness: float
    unfair_share: float  # of jobs with a fairness above 1
    num_failures: int
    cost: float | None  # None where a GPU type that was used has no price
    mean_plan_ms: float  # wall-clock time of the policy in a round: not deterministic


def summarise(
    run: SimulationRun,
    trace: tuple[TraceJob, ...],
    job_types: Mapping[str, JobType],
    cluster: Cluster,
    prices_per_hour: Mapping[str, float] | None = None,
) -> Summary:
    """The figures of one run; GPUs are paid for while they are held."""
    hours = np.array([job.jct_s for job in run.jobs]) / 3600
    ratios = fairness_ratios(run, trace, job_types, cluster)
    begin_s = min(job.submit_s for job in trace)
    held_s = sum(run.gpu_seconds_by_type.values())
    prices = prices_per_hour or {}
    is_priced = all(gpu_type in prices for gpu_type in run.gpu_seconds_by_type)
    return Summary(
        policy=run.policy,
        num_jobs=len(run.jobs),
        mean_jct_h=float(hours.mean()),
        p50_jct_h=float(np.percentile(hours, 50)),
        p99_jct_h=float(np.percentile(hours, 99)),
        makespan_h=(run.end_s - begin_s) / 3600,
        gpu_hours=held_s / 3600,
        mean_restarts=float(np.mean([job.num_restarts for job in run.jobs])),
        utilisation=held_s / (cluster.num_gpus * max(run.end_s - begin_s, 1e-9)),
        mean_fairness=float(ratios.mean()),
        p99_fairness=float(np.percentile(ratios, 99)),
        worst_fairness=float(ratios.max()),
        unfair_share=float((ratios > 1).mean()),
        num_failures=len(run.failures),
        cost=sum(seconds / 3600 * prices[kind] for kind, seconds in run.gpu_seconds_by_type.items()) if is_priced else None,
        mean_plan_ms=float(np.mean(run.plan_seconds)) * 1e3,
    )


def fairness_ratios(
    run: SimulationRun, trace: tuple[TraceJob, ...], job_types: Mapping[str, JobType], cluster: Cluster
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[J] finish-time fairness (Mahajan et al., Themis, NSDI 2020): completion time over that alone on 1 / N of the cluster.

    N is the mean number of jobs in the system while the job was. Alone it runs on 1 / N of the GPUs, at least one, of one type; the time
    is the mean over types, weighted by their GPUs (as in Sia, SOSP 2023, section 5.2).
    """
    sizes: dict[str, list[int]] = {}
    for node in cluster.nodes:
        sizes.setdefault(node.gpu_type, []).append(node.num_gpus)
    return np.array([done.jct_s / _alone_s(done, job, job_types, sizes) for done, job in zip(run.jobs, trace, strict=True)])


def _alone_s(done: FinishedJob, job: TraceJob, job_types: Mapping[str, JobType], sizes: Mapping[str, list[int]]) -> float:
    share = max(job.min_gpus, int(sum(map(sum, sizes.values())) / done.mean_contention))
    kind, times, weights = job_types[job.job_type], [], []
    for gpu_type, counts in sizes.items():
        if job.gpu_types is not None and gpu_type not in job.gpu_types:
            continue
        shapes = [shape for shape in shapes_of(counts) if job.min_gpus <= shape[1] <= min(share, job.max_gpus)] or [(1, job.min_gpus)]
        seconds = min(kind.duration_s(gpu_type, shape) for shape in shapes)
        if np.isfinite(seconds):
            times.append(seconds * job.work_scale)
            weights.append(sum(counts))
    return float(np.average(times, weights=weights)) if times else np.inf
