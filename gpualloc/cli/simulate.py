"""`gpualloc simulate`: what scheduling policies would do to a trace of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpualloc.cli.progress import show_parts
from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from gpualloc.plan.protocol import Cluster
    from gpualloc.plan.simulation.comparison import Comparison
    from gpualloc.plan.simulation.metrics import Summary
    from gpualloc.plan.simulation.trace import TraceJob

_MAX_JOBS, _MAX_SEEDS = 100_000, 1000
_MIN_TIMELINE_COLUMNS = 20


def simulate(
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="A CSV file of jobs; without it, jobs are made.")] = None,
    jobs: Annotated[int, typer.Option(help="Number of made jobs.")] = 160,
    hours: Annotated[float, typer.Option(help="Hours within which they arrive.")] = 8.0,
    arrivals: Annotated[Literal["poisson", "bursty"], typer.Option(help="How they arrive.")] = "bursty",
    mix: Annotated[Literal["philly", "saturn"], typer.Option(help="Shares of small to very long jobs, as in these traces.")] = "philly",
    cluster: Annotated[str, typer.Option(metavar="NAME|FILE", help="mixed64, t4x64, a100x64, mixed256, or a YAML file.")] = "mixed64",
    rates: Annotated[Path | None, typer.Option(metavar="DIR", help="Measured steps, a CSV for each GPU type.")] = None,
    policy: Annotated[str, typer.Option(metavar="LIST", help="Policies, such as gpualloc,sia; or all.")] = "gpualloc,sia,greedy",
    seeds: Annotated[int, typer.Option(help="Traces, or draws of errors and failures; intervals are over them.")] = 3,
    round_s: Annotated[float, typer.Option(help="Seconds between plans.")] = 60.0,
    failures: Annotated[
        float | None, typer.Option(metavar="HOURS", help="Mean time between failures of a node (default: none fails).")
    ] = None,
    work_error: Annotated[
        str, typer.Option(metavar="SHARE|none", help="Error of the work that jobs declare, up to this; none: they declare nothing.")
    ] = "0.3",
    rate_error: Annotated[float, typer.Option(help="Error of the rates that policies see (standard deviation of the logarithm).")] = 0.1,
    max_growth: Annotated[
        float | None, typer.Option(help="A job may hold so many times the most GPUs it has held, from 1 on (default: no limit).")
    ] = None,
    timeline: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the first seed's allocations over time as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Simulate scheduling policies on a cluster over days: completion times, fairness, restarts, utilisation, cost.

    Each policy sees the same jobs, errors and failures. Results depend on the options and seeds alone.

    Examples:
      gpualloc simulate
      gpualloc simulate --policy all --seeds 10 --rates measured_steps
      gpualloc simulate --trace jobs.csv --cluster cluster.yaml --failures 200 --timeline timeline.json
    """
    from gpualloc.plan.policies import POLICIES, policy_named
    from gpualloc.plan.simulation.clusters import load_cluster
    from gpualloc.plan.simulation.comparison import compare
    from gpualloc.plan.simulation.generators import generate_trace
    from gpualloc.plan.simulation.job_types import MIXES, assumed_job_types, measured_job_types
    from gpualloc.plan.simulation.records import SimulationOptions
    from gpualloc.plan.simulation.timeline import timeline_data
    from gpualloc.plan.simulation.trace import read_trace

    for option, value, highest in (("--jobs", jobs, _MAX_JOBS), ("--seeds", seeds, _MAX_SEEDS)):
        if not 1 <= value <= highest:
            raise UsageError(f"{option} {value} is out of range; choose 1 to {highest:,}")
    names = POLICIES if policy == "all" else tuple(dict.fromkeys(name.strip() for name in policy.split(",")))
    policies = [policy_named(name) for name in names]
    options = SimulationOptions(
        round_s=round_s,
        work_error=_work_error(work_error),
        rate_error=rate_error,
        max_growth=max_growth,
        mean_hours_between_failures=failures,
    )
    machine, prices = load_cluster(cluster)
    job_types = assumed_job_types() if rates is None else measured_job_types(rates)
    if trace is not None:
        read = read_trace(trace, job_types)
        traces = dict.fromkeys(range(seeds), read)
    else:
        shares = {name: share for name, share in MIXES[mix].items() if name in job_types}
        traces = {seed: generate_trace(num_jobs=jobs, hours=hours, arrivals=arrivals, mix=shares, seed=seed) for seed in range(seeds)}
    with show_parts([1.0] * (len(policies) * len(traces)), are_short=True) as parts:

        def tell(what: str, summary: Summary | None) -> None:
            if summary is None:
                parts.begin(what)
            else:
                parts.end(f"{what}: {summary.mean_jct_h:.3f} h a job")

        comparison = compare(policies, traces, job_types, machine, options, prices_per_hour=prices, tell=tell)
    if timeline is not None:
        from gpualloc.cli.tables import json_text

        try:
            timeline.write_text(json_text([timeline_data(run) for run in comparison.first_runs.values()]) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--timeline {timeline} cannot be written: {error}; name a file that can") from error
    source = "assumed step times" if rates is None else f"steps measured in {rates}"
    if as_json:
        _print_json(comparison, names, source)
    else:
        _print_table(comparison, names, machine, traces[0], source)


def _work_error(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--work-error {text} is neither a share such as 0.3 nor none") from None


def _print_json(comparison: Comparison, names: tuple[str, ...], source: str) -> None:
    from dataclasses import asdict

    from gpualloc.cli.tables import print_json
    from gpualloc.plan.simulation.comparison import COMPARED

    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append(
            {
                "policy": name,
                "figures": {figure: asdict(comparison.interval(name, figure)) for figure in COMPARED},
                "mean_jct_over_first_policy": asdict(comparison.ratio(name, names[0], "mean_jct_h")),
                "by_seed": [asdict(summary) for summary in comparison.summaries[name]],
            }
        )
    print_json({"step_times": source, "policies": rows})


def _print_table(comparison: Comparison, names: tuple[str, ...], machine: Cluster, trace: tuple[TraceJob, ...], source: str) -> None:
    from rich.text import Text

    from gpualloc.cli.columns import Column, Row, table_lines
    from gpualloc.cli.tables import output_console, printable
    from gpualloc.plan.simulation.timeline import utilisation_lines

    console = output_console()
    num_seeds = len(comparison.summaries[names[0]])
    columns = [
        Column("policy", 10, is_left=True),
        Column("mean h", 9),
        Column("95 %", 6),
        Column("to first", 8.5),
        Column("95 % of it", 7.5),
        Column("p50 h", 4),
        Column("p99 h", 8),
        Column("makespan h", 3),
        Column("GPU-hours", 5),
        Column("restarts", 5),
        Column("in use", 3),
        Column("fairness p99", 7),
        Column("unfair", 2),
        Column("cost", 6),
        Column("plan ms", 1),
    ]
    rows = []
    for name in names:
        mean, ratio = comparison.interval(name, "mean_jct_h"), comparison.ratio(name, names[0], "mean_jct_h")
        costs = [summary.cost for summary in comparison.summaries[name]]
        cost = sum(value for value in costs if value is not None) / len(costs) if None not in costs else None
        figure = {key: comparison.interval(name, key).mean for key in (
            "p50_jct_h", "p99_jct_h", "makespan_h", "gpu_hours", "mean_restarts", "utilisation", "p99_fairness", "unfair_share",
            "mean_plan_ms",
        )}  # fmt: skip
        rows.append(
            Row(
                [
                    name,
                    f"{mean.mean:.3f}",
                    "-" if mean.low is None else f"{mean.low:.2f}-{mean.high:.2f}",
                    "-" if name == names[0] else f"{ratio.mean:.2f}x",
                    "-" if name == names[0] or ratio.low is None else f"{ratio.low:.2f}-{ratio.high:.2f}",
                    f"{figure['p50_jct_h']:.3f}",
                    f"{figure['p99_jct_h']:.2f}",
                    f"{figure['makespan_h']:.1f}",
                    f"{figure['gpu_hours']:.0f}",
                    f"{figure['mean_restarts']:.1f}",
                    f"{figure['utilisation']:.0%}",
                    f"{figure['p99_fairness']:.2f}",
                    f"{figure['unfair_share']:.0%}",
                    "-" if cost is None else f"{cost:.0f}",
                    f"{figure['mean_plan_ms']:.1f}",
                ]
            )
        )
    what = f"{len(trace)} jobs on {machine.num_gpus} GPUs, {num_seeds} seed{'s' if num_seeds > 1 else ''}, {source}"
    console.print(Text(printable(what), style="bold"), soft_wrap=True)
    for line in table_lines(columns, rows, console.width):
        console.print(line, soft_wrap=True)
    console.print()
    run = comparison.first_runs[names[0]]
    slices = max(console.width - max(len(node.gpu_type) for node in machine.nodes) - 3, _MIN_TIMELINE_COLUMNS)
    for text in utilisation_lines(run, machine, slices):
        console.print(Text(text), soft_wrap=True)
    console.print(Text(f"GPUs in use under {names[0]}, first seed, over {run.end_s / 3600:.1f} h: the fuller the more", style="dim"))
    console.print(
        Text(
            "fairness: completion time over that on a share of the cluster of the job's own; unfair: jobs above 1. "
            "to first: mean of the ratios on the same trace",
            style="dim",
        )
    )
