"""gpualloc's policy beside the others: ten traces of 160 jobs over 8 hours on 64 GPUs of three types.

    python benchmarks/compare_policies.py --rates DIR --output benchmarks/results/policies_DATE.json

DIR holds tables of measured steps (docs/simulate.md). Traces differ in arrivals (Poisson, bursts) and mix (philly, saturn); no figure of
the policies was chosen on these seeds. Policies that use no declared work run once; gpualloc and srtf run with 30 % error in it, and
without any.
Ratios are to sia on the same trace, with 95 % intervals over traces. `--keep FILE` takes over the policies that a former output holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpualloc.bench.environment import read_cpu_name
from gpualloc.plan.policies import POLICIES, policy_named
from gpualloc.plan.simulation.clusters import load_cluster
from gpualloc.plan.simulation.comparison import Interval
from gpualloc.plan.simulation.engine import simulate
from gpualloc.plan.simulation.generators import Arrivals, generate_trace
from gpualloc.plan.simulation.job_types import MIXES, JobType, measured_job_types
from gpualloc.plan.simulation.metrics import summarise
from gpualloc.plan.simulation.records import SimulationOptions
from gpualloc.plan.simulation.trace import TraceJob

FIRST_SEED = 100
ARRIVALS: tuple[Arrivals, ...] = ("poisson", "bursty")
USE_DECLARED_WORK = ("gpualloc", "srtf")
FIGURES = (
    "mean_jct_h",
    "p50_jct_h",
    "p99_jct_h",
    "makespan_h",
    "gpu_hours",
    "mean_restarts",
    "p99_fairness",
    "worst_fairness",
    "unfair_share",
)
CLUSTER = "mixed64"


def made_trace(seed: int, num_jobs: int = 160) -> tuple[TraceJob, ...]:
    """Over 8 hours; seeds differ in arrivals and mix, too."""
    mix = MIXES[("philly", "saturn")[seed // 2 % 2]]
    return generate_trace(num_jobs=num_jobs, hours=8.0, arrivals=ARRIVALS[seed % 2], mix=mix, seed=seed)


def runs_of(
    name: str, work_error: float | None, num_traces: int, num_jobs: int, types: dict[str, JobType], max_growth: float | None
) -> list[dict[str, Any]]:
    cluster, _ = load_cluster(CLUSTER)
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + num_traces):
        trace = made_trace(seed, num_jobs)
        options = SimulationOptions(work_error=work_error, max_growth=max_growth, seed=seed)
        run = simulate(policy_named(name), trace, types, cluster, options)
        rows.append({"seed": seed, **asdict(summarise(run, trace, types, cluster))})
        print(f"{name}, seed {seed}: mean {rows[-1]['mean_jct_h']:.3f} h", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, required=True, metavar="DIR")
    parser.add_argument("--traces", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=160)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--max-growth", type=float)
    parser.add_argument("--keep", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    types = measured_job_types(arguments.rates)
    results: dict[str, list[dict[str, Any]]] = {}
    for file in arguments.keep:
        results |= json.loads(file.read_text())["by_seed"]
    for name in filter(None, arguments.policies.split(",")):
        for label, error in ((name, 0.3), (f"{name}, no work declared", None)):
            if label in results or (error is None and name not in USE_DECLARED_WORK):
                continue
            results[label] = runs_of(name, error, arguments.traces, arguments.jobs, types, arguments.max_growth)
    rows = {}
    for label, by_seed in results.items():
        rows[label] = {figure: asdict(Interval.of([row[figure] for row in by_seed])) for figure in FIGURES}
        if "sia" in results:
            pairs = list(zip(by_seed, results["sia"], strict=True))
            rows[label]["over_sia"] = {
                figure: asdict(Interval.of([one[figure] / other[figure] for one, other in pairs]))
                for figure in ("mean_jct_h", "p50_jct_h", "p99_jct_h", "p99_fairness", "worst_fairness")
            }
    data = {
        "cpu": read_cpu_name(),
        "traces": arguments.traces,
        "first_seed": FIRST_SEED,
        "what": f"{arguments.jobs} jobs over 8 h on 24 T4, 24 RTX 2080 Ti, 16 A100; rounds of 60 s; declared work off by up to 30 %",
        "command": "python benchmarks/compare_policies.py --rates DIR" + (f" --jobs {arguments.jobs}" if arguments.jobs != 160 else ""),
        "max_growth": arguments.max_growth,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "policies": rows,
        "by_seed": results,
    }
    text = json.dumps(data, indent=1) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text)
    for label, row in rows.items():
        over = row.get("over_sia", {}).get("mean_jct_h")
        part = f", {over['mean']:.3f} of sia ({over['low']:.3f} to {over['high']:.3f})" if over and over["low"] is not None else ""
        print(f"{label}: mean {row['mean_jct_h']['mean']:.3f} h, p99 {row['p99_jct_h']['mean']:.2f} h{part}")


if __name__ == "__main__":
    main()
