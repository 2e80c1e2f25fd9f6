"""Made traces: Poisson or bursty arrivals of a mix of image and language jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from gpualloc.errors import UsageError
from gpualloc.plan.simulation.trace import DEFAULT_MAX_GPUS, TraceJob

Arrivals = Literal["poisson", "bursty"]
_JOBS_PER_BURST = 8
_BURST_SPREAD_S = 300.0  # mean distance from a burst's beginning


def generate_trace(
    *, num_jobs: int, hours: float, arrivals: Arrivals, mix: Mapping[str, float], seed: int, max_gpus: int = DEFAULT_MAX_GPUS
) -> tuple[TraceJob, ...]:
    """`num_jobs` jobs over `hours`, in order of arrival.

    Poisson arrivals, given how many there are, are independent and uniform in time. Bursts begin so, too, and their jobs follow within
    minutes,     as where a user submits a sweep.

    Args:
        num_jobs: at least 1.
        hours: within which they arrive, above 0.
        arrivals: "poisson" or "bursty".
        mix: job type -> share; the shares need not sum to 1.
        seed: the same seed gives the same trace.
        max_gpus: of each job.

    Raises:
        UsageError: a number is out of range.
    """
    if num_jobs < 1 or not hours > 0:
        raise UsageError(f"{num_jobs} jobs over {hours:g} hours; give at least 1 job and a time above 0")
    rng = np.random.default_rng(seed)
    length_s = hours * 3600
    if arrivals == "poisson":
        times = rng.uniform(0, length_s, num_jobs)
    else:
        beginnings = rng.uniform(0, length_s, max(1, num_jobs // _JOBS_PER_BURST))
        times = beginnings[rng.integers(0, len(beginnings), num_jobs)] + rng.exponential(_BURST_SPREAD_S, num_jobs)
        times = np.minimum(times, length_s)
    names = sorted(mix)
    shares = np.array([mix[name] for name in names])
    kinds = rng.choice(len(names), size=num_jobs, p=shares / shares.sum())
    return tuple(
        TraceJob(job_id=f"{names[kind]}-{number}", submit_s=round(float(at), 3), job_type=names[kind], max_gpus=max_gpus)
        for number, (at, kind) in enumerate(zip(np.sort(times).tolist(), kinds.tolist(), strict=True))
    )
