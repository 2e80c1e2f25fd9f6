"""`gpualloc plan`: which workload gets which GPUs, how many, when and with which settings."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpualloc.cli.progress import show_working
from gpualloc.errors import GpuallocError, InfeasibleError, UsageError

if TYPE_CHECKING:
    from gpualloc.plan.cluster_file import ClusterFile
    from gpualloc.plan.outcome import Impossible, Planned
    from gpualloc.plan.preparing import PlanOptions
    from gpualloc.plan.rates import Knowledge
    from gpualloc.plan.records import Plan
    from gpualloc.plan.watching import Watcher
    from gpualloc.plan.workloads import WorkloadsFile

_MIN_INTERVAL_S = 0.05


def plan(
    workloads: Annotated[Path, typer.Argument(metavar="WORKLOADS", help="YAML or JSON: what is to be trained, docs/plan.md.")],
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: nodes, GPUs, links, prices (default: this machine, as detected).")
    ] = None,
    objective: Annotated[
        Literal["mean_jct", "makespan", "cost", "throughput_per_money"],
        typer.Option(help="What is made small: mean completion time, last finish, money; or large: samples per money."),
    ] = "mean_jct",
    pessimistic: Annotated[bool, typer.Option("--pessimistic", help="Plan with the slow end of each rate's interval.")] = False,
    min_efficiency: Annotated[
        float, typer.Option(metavar="SHARE", help="Of linear scaling: counts of GPUs below it won't pay and get none.")
    ] = 0.5,
    method: Annotated[
        Literal["auto", "exact", "scalable"], typer.Option(help="auto: exact (MILP) for few workloads, with its gap; scalable beyond.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the search: the same seed gives the same plan.")] = 0,
    current: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The plan that runs: what it runs is moved only if that pays.")
    ] = None,
    hysteresis: Annotated[float, typer.Option(metavar="SHARE", help="Of the objective that moving running workloads must gain.")] = 0.05,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan for: gpualloc run FILE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables; with --watch a line for each decision.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Plan again whenever workloads arrive, end or drift, until interrupted.")] = False,
    interval_s: Annotated[float, typer.Option(help="Of --watch: seconds between looks.")] = 5.0,
    store: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Results to take rates from (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/...)."),
    ] = None,
) -> None:
    """Plan which workload gets which GPUs: type, number, devices, strategy, precision, batch, start, finish and cost.

    Rates come from the workloads file, from what gpualloc bench measured or rehearsed, or from the forecast; a workload with an unknown one
    gets a slot to be measured in.

    Where nothing satisfies all limits, the command ends with 3 and the smallest change that would.

    Examples:
      gpualloc plan workloads.yaml --cluster cluster.yaml --out plan.json
      gpualloc plan workloads.yaml --objective cost --pessimistic
      gpualloc plan workloads.yaml --cluster cluster.yaml --current plan.json --out plan.json
      gpualloc plan workloads.yaml --watch --json --out plan.json
    """
    from gpualloc.plan.outcome import Impossible
    from gpualloc.plan.planner import make_plan
    from gpualloc.plan.preparing import PlanOptions
    from gpualloc.plan.records import read_plan
    from gpualloc.store import default_store_path

    for option, share in (("--min-efficiency", min_efficiency), ("--hysteresis", hysteresis)):
        if not 0 <= share <= 1:
            raise UsageError(f"{option} {share:g} is not a share; choose 0 to 1")
    if not interval_s >= _MIN_INTERVAL_S:
        raise UsageError(f"--interval-s {interval_s:g} is out of range; choose {_MIN_INTERVAL_S:g} or more")
    if out is not None and not out.resolve().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.resolve().parent}; make it, or choose another place")
    store_path = store or default_store_path()
    options = PlanOptions(
        objective=objective,
        seed=seed,
        is_pessimistic=pessimistic,
        min_efficiency=min_efficiency,
        method=method,
        hysteresis=hysteresis,
        may_wait=watch,
    )
    before = None if current is None else read_plan(current)
    if watch:
        return _watch(workloads, cluster, store_path, options, before, out, interval_s=interval_s, as_json=as_json)
    file, nodes = _left_to_plan(workloads), _read_cluster(cluster)
    for entry in file.sharing:
        if entry.gpu_type not in nodes.gpu_types:
            where = f"{' and '.join(entry.workloads)} on {entry.gpu_type}"
            print(f"gpualloc: sharing of {where} is ignored: the cluster has {', '.join(nodes.gpu_types)}", file=sys.stderr)
    knowledge, now_utc = _read_knowledge(store_path), datetime.now(timezone.utc)
    with show_working(f"planning {len(file.workloads)} workloads"):
        found = make_plan(file, nodes, knowledge, options, now_utc=now_utc, current=before)
    if isinstance(found, Impossible):
        raise _refusal(found, file, nodes, knowledge, options, now_utc, before, as_json=as_json)
    if out is not None:
        _write(found.plan, out)
    _print(found, file, before, now_utc, as_json=as_json)
    return None


def _left_to_plan(path: Path) -> WorkloadsFile:
    """The workloads file without what is done, which is told."""
    from gpualloc.plan.workloads import read_workloads, without_done

    read = read_workloads(path)
    file = without_done(read)
    if not file.workloads:
        raise UsageError(f"{path}: samples_done of every workload has reached its total: nothing is left to plan; add a workload")
    for each in read.workloads:
        if each.is_done:
            print(f"gpualloc: {each.name} is left out: its {each.total_samples:,.0f} samples are done", file=sys.stderr)
    return file


def _read_cluster(path: Path | None) -> ClusterFile:
    if path is not None:
        from gpualloc.plan.cluster_file import read_cluster

        return read_cluster(path)
    from gpualloc.plan.detection import detect_cluster

    return detect_cluster()


def _read_knowledge(store_path: Path) -> Knowledge:
    from gpualloc.plan.forecasting import make_forecaster
    from gpualloc.plan.rates import Knowledge, read_measurements

    measurements = read_measurements(store_path)
    return Knowledge(measurements=measurements, forecaster=make_forecaster(measurements))


def _write(plan: Plan, out: Path) -> None:
    from gpualloc.plan.records import write_plan

    try:
        write_plan(plan, out)
    except OSError as error:
        raise GpuallocError(f"--out {out}: cannot be written: {error.strerror}; choose another place") from error


def _print(found: Planned, file: WorkloadsFile, before: Plan | None, now_utc: datetime, *, as_json: bool) -> None:
    from gpualloc.cli.plan_text import plan_json, print_plan
    from gpualloc.plan.difference import differences
    from gpualloc.plan.running import elapsed_s

    changes = []
    if before is not None:
        workloads = {workload.name: workload for workload in file.workloads}
        changes = differences(before, found.plan, workloads, elapsed_s=elapsed_s(before, now_utc))
    if as_json:
        from gpualloc.cli.tables import print_json

        print_json(plan_json(found, changes))
    else:
        print_plan(found, changes)


def _refusal(
    found: Impossible,
    file: WorkloadsFile,
    cluster: ClusterFile,
    knowledge: Knowledge,
    options: PlanOptions,
    now_utc: datetime,
    current: Plan | None,
    *,
    as_json: bool,
) -> InfeasibleError:
    """Prints what was considered; the error says why there is no plan and which smallest change would allow one."""
    from gpualloc.cli.plan_text import impossible_json, print_considered
    from gpualloc.cli.tables import output_console, print_json
    from gpualloc.plan.smallest_change import smallest_change

    with show_working("looking for the smallest change that makes a plan possible"):
        remedy = smallest_change(file, cluster, knowledge, options, now_utc=now_utc, current=current)
    if as_json:
        print_json(impossible_json(found, remedy))
    else:
        print_considered(found.considered, output_console())
    clash = "no schedule keeps all deadlines" if found.is_proven else "no schedule that keeps all deadlines was found"
    why = "; ".join(found.reasons) or clash
    change = (
        f"the smallest change that makes it possible: {remedy.text}" if remedy else "no single change of a limit would make it possible"
    )
    return InfeasibleError(f"there is no plan: {why}; {change}")


def _watch(
    workloads: Path,
    cluster: Path | None,
    store_path: Path,
    options: PlanOptions,
    current: Plan | None,
    out: Path | None,
    *,
    interval_s: float,
    as_json: bool,
) -> None:
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.plan.watching import Watcher

    detected = None if cluster is not None else _read_cluster(None)  # later our own jobs are what makes GPUs busy
    watcher = Watcher(
        workloads,
        read_cluster=lambda: detected or _read_cluster(cluster),
        read_knowledge=lambda: _read_knowledge(store_path),
        store_path=store_path,
        options=options,
        current=current,
    )
    try:
        with interruptible():
            while True:
                _look(watcher, out, as_json=as_json)
                time.sleep(interval_s)
    except Interrupted as interruption:
        print(f"gpualloc: interrupted ({interruption})", file=sys.stderr)
        raise typer.Exit(interruption.exit_code) from None


def _look(watcher: Watcher, out: Path | None, *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from gpualloc.cli.tables import printable

    before = watcher.plan
    decisions = watcher.look(datetime.now(timezone.utc))
    if out is not None and watcher.plan is not None and watcher.plan is not before:
        _write(watcher.plan, out)
    for decision in decisions:
        line: Any = json.dumps(asdict(decision)) if as_json else printable(f"{decision.at_utc}  {decision.text}")
        print(line, flush=True)
