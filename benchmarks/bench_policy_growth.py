"""How long a round of a policy takes as the cluster grows: 64 GPUs / 160 jobs to 10,000 / 25,000.

    python benchmarks/bench_policy_growth.py --output benchmarks/results/policy_growth_DATE.json

Jobs are of the shipped types at random progress; the round that is timed is one in the middle: what the round before planned runs, a
tenth of the jobs are new. Best and median of the repeats, wall-clock, one process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpualloc.bench.environment import read_cpu_name
from gpualloc.plan.policies import policy_named
from gpualloc.plan.protocol import Cluster, Node, Shape
from gpualloc.plan.simulation.job_types import MIXES, NUM_LEVELS, JobType, assumed_job_types

SIZES = ((64, 160), (256, 640), (1024, 2560), (10_000, 25_000))
SHARES = (("t4", 4, 0.375), ("rtx2080ti", 8, 0.375), ("a100", 8, 0.25))  # GPU type, GPUs of a node, share of the GPUs


@dataclass
class TimedJob:
    job_id: str
    job_type: JobType
    level: int
    age_s: float
    progress_left: float | None
    min_gpus: int = 1
    max_gpus: int = 64
    gpu_types: None = None
    num_restarts: int = 0
    weight: float = 1.0

    @property
    def restart_cost_s(self) -> float:
        return self.job_type.training.restart_cost_s

    @property
    def progress_done(self) -> float:
        return self.job_type.training.total_progress * self.level / NUM_LEVELS

    def rates(self, gpu_type: str, shapes: tuple[Shape, ...]) -> NDArray[np.float64]:
        return self.job_type.goodputs(gpu_type, shapes)[self.level]

    def rate(self, gpu_type: str, num_nodes: int, num_gpus: int) -> float | None:
        return float(self.rates(gpu_type, ((num_nodes, num_gpus),))[0]) or None


def made_cluster(num_gpus: int) -> Cluster:
    return Cluster(
        nodes=tuple(
            Node(node_id=f"{kind}-{index}", gpu_type=kind, num_gpus=size)
            for kind, size, share in SHARES
            for index in range(round(num_gpus * share / size))
        )
    )


def made_jobs(count: int, seed: int) -> list[TimedJob]:
    rng = np.random.default_rng(seed)
    types = assumed_job_types()
    names = sorted(MIXES["philly"])
    kinds = rng.choice(len(names), count, p=[MIXES["philly"][name] for name in names])
    jobs = []
    for number, kind in enumerate(kinds.tolist()):
        job_type, level = types[names[kind]], int(rng.integers(NUM_LEVELS))
        left = job_type.training.total_progress * (1 - level / NUM_LEVELS) * rng.uniform(0.7, 1.3)
        jobs.append(TimedJob(f"j{number:06}", job_type, level, float(rng.exponential(3600)), float(left)))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="gpualloc")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-jobs", type=int, default=SIZES[-1][1])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.policies.split(","):
        policy = policy_named(name)
        for num_gpus, num_jobs in SIZES:
            if num_jobs > arguments.max_jobs:
                continue
            cluster, jobs = made_cluster(num_gpus), made_jobs(num_jobs, seed=1)
            known = jobs[num_jobs // 10 :]
            current = policy.allocate(0.0, known, cluster, {})
            times = []
            for _ in range(arguments.repeats):
                started = time.perf_counter()
                plan = policy.allocate(60.0, jobs, cluster, current)
                times.append((time.perf_counter() - started) * 1e3)
            used = sum(held.num_gpus for held in plan.values())
            rows.append(
                {
                    "policy": name,
                    "num_gpus": cluster.num_gpus,
                    "num_jobs": num_jobs,
                    "best_ms": min(times),
                    "median_ms": statistics.median(times),
                    "gpus_used": used,
                    "kept": sum(plan.get(job_id) == held for job_id, held in current.items()) / max(len(current), 1),
                }
            )
            print(rows[-1], flush=True)
    if arguments.output is not None:
        data = {
            "cpu": read_cpu_name(),
            "command": "python benchmarks/bench_policy_growth.py",
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "repeats": arguments.repeats,
            "rows": rows,
        }
        arguments.output.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
