"""Made traces: Poisson or bursty arrivals of a mix of job types."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gpualloc.plan.simulation.trace import TraceJob


def generate_trace(
    *, num_jobs: int, hours: float, arrivals: str, mix: Mapping[str, float], seed: int, max_gpus: int = 64
) -> tuple[TraceJob, ...]:
    rng = np.random.default_rng(seed)
    if arrivals == "poisson":
        times = np.sort(rng.uniform(0, hours * 3600, num_jobs))
    else:
        num_bursts = max(1, num_jobs // 8)
        centres = rng.uniform(0, hours * 3600, num_bursts)
        times = np.sort(np.clip(centres[rng.integers(0, num_bursts, num_jobs)] + rng.exponential(300, num_jobs), 0, hours * 3600))
    names = sorted(mix)
    shares = np.array([mix[name] for name in names])
    kinds = rng.choice(len(names), size=num_jobs, p=shares / shares.sum())
    return tuple(
        TraceJob(job_id=f"{names[kind]}-{number}", submit_s=float(round(at, 3)), job_type=names[kind], max_gpus=max_gpus)
        for number, (at, kind) in enumerate(zip(times.tolist(), kinds.tolist(), strict=True))
    )
