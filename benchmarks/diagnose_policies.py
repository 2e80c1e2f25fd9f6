"""Where completion time goes, by policy, and what restarts cost: traces of `compare_policies`, of seeds that are not scored there.

    python -m benchmarks.diagnose_policies --rates DIR --output benchmarks/results/policy_diagnosis_DATE.json

A job's completion time is its wait for the first start, the time it held nothing later, its restarts, the time that it would take alone on
its best allocation, and the rest: what it lost by running on less. A second run with restarts that cost nothing tells what the same policy
would come to; the first starts are added to it, so that only moves are free.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare_policies import CLUSTER, FIRST_SEED, made_trace
from gpualloc.bench.environment import read_cpu_name
from gpualloc.errors import UsageError
from gpualloc.plan.choices import shapes_of
from gpualloc.plan.policies import policy_named
from gpualloc.plan.protocol import Cluster
from gpualloc.plan.simulation.clusters import load_cluster
from gpualloc.plan.simulation.comparison import Interval
from gpualloc.plan.simulation.engine import simulate
from gpualloc.plan.simulation.job_types import JobType, measured_job_types
from gpualloc.plan.simulation.records import SimulationOptions, SimulationRun, Span

PARTS = ("first_wait", "held_nothing", "restarts", "alone_at_best", "on_less")
_NO_COST_S = 1e-3


def best_alone_s(kind: JobType, cluster: Cluster) -> float:
    """On the best of all allocations, its start left out."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for node in cluster.nodes:
        sizes[node.gpu_type].append(node.num_gpus)
    return min(kind.duration_s(gpu_type, shape) for gpu_type, counts in sizes.items() for shape in shapes_of(counts))


def parts_of(run: SimulationRun, types: dict[str, JobType], best_s: dict[str, float]) -> dict[str, NDArray[np.float64]]:
    """Job type -> seconds [PARTS], summed over its jobs."""
    spans: dict[str, list[Span]] = defaultdict(list)
    for span in run.spans:
        spans[span.job_id].append(span)
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(PARTS)))
    for job in run.jobs:
        cost_s = types[job.job_type].training.restart_cost_s
        held = np.array([span.end_s - span.start_s for span in spans[job.job_id]])
        first_wait, restarts = job.start_s - job.submit_s, float(np.minimum(held, cost_s).sum())
        nothing, running = job.end_s - job.start_s - float(held.sum()), float(held.sum()) - restarts
        sums[job.job_type] += [first_wait, nothing, restarts, best_s[job.job_type], running - best_s[job.job_type]]
    return sums


def diagnosis(name: str, seeds: range, types: dict[str, JobType]) -> dict[str, Any]:
    cluster, _ = load_cluster(CLUSTER)
    best_s = {kind: best_alone_s(job_type, cluster) for kind, job_type in types.items()}
    free = {kind: replace(job_type, training=replace(job_type.training, restart_cost_s=_NO_COST_S)) for kind, job_type in types.items()}
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(PARTS)))
    means, free_means, num_jobs = [], [], 0
    for seed in seeds:
        trace, options = made_trace(seed), SimulationOptions(work_error=0.3, seed=seed)
        run, free_run = (simulate(policy_named(name), trace, kinds, cluster, options) for kinds in (types, free))
        for kind, seconds in parts_of(run, types, best_s).items():
            sums[kind] += seconds
        first_s = float(np.mean([types[job.job_type].training.restart_cost_s for job in trace]))
        means.append(float(np.mean([job.jct_s for job in run.jobs])) / 3600)
        free_means.append((float(np.mean([job.jct_s for job in free_run.jobs])) + first_s) / 3600)
        num_jobs += len(trace)
    return {
        "mean_jct_h": means,
        "mean_jct_h_with_free_moves": free_means,
        "parts_of_the_mean_h": {
            kind: dict(zip(PARTS, (sums[kind] / num_jobs / 3600).round(5).tolist(), strict=True)) for kind in types if kind in sums
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, required=True, metavar="DIR")
    parser.add_argument("--policies", default="sia,gpualloc")
    parser.add_argument("--traces", type=int, default=6)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not 1 <= arguments.traces <= FIRST_SEED:
        raise UsageError(f"--traces {arguments.traces}; give 1 to {FIRST_SEED}: seeds from {FIRST_SEED} on are scored")
    types, seeds = measured_job_types(arguments.rates), range(arguments.traces)
    data: dict[str, Any] = {
        "cpu": read_cpu_name(),
        "command": "python -m benchmarks.diagnose_policies --rates DIR",
        "seeds": list(seeds),
        "policies": {},
    }
    for name in arguments.policies.split(","):
        found = data["policies"][name] = diagnosis(name, seeds, types)
        print(f"{name}: mean {np.mean(found['mean_jct_h']):.3f} h, {np.mean(found['mean_jct_h_with_free_moves']):.3f} h with free moves")
        print(f"{'hours of the mean':18}" + "".join(f"{part:>15}" for part in PARTS))
        for kind, parts in found["parts_of_the_mean_h"].items():
            print(f"{kind:18}" + "".join(f"{parts[part]:15.4f}" for part in PARTS))
        reference = data["policies"].get("sia")
        if reference is not None:
            for figure in ("mean_jct_h", "mean_jct_h_with_free_moves"):
                ratios = [one / other for one, other in zip(found[figure], reference["mean_jct_h"], strict=True)]
                found[f"{figure}_over_sia"] = asdict(Interval.of(ratios))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
