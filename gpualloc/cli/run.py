"""`gpualloc run`: makes a plan happen and keeps watch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpualloc.launch.job import Job
    from gpualloc.launch.runner import RunningJob

State = Annotated[
    Path | None, typer.Option("--state", metavar="PATH", help="State file (else $GPUALLOC_STATE, else state.sqlite beside the results).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EngineName = Literal["local", "slurm", "ray", "kubernetes", "skypilot", "dstack"]


def run(
    plan: Annotated[Path, typer.Argument(metavar="FILE", help="What gpualloc plan wrote.")],
    engine: Annotated[EngineName, typer.Option(help="Who starts the jobs; the last three take files, which are written.")] = "local",
    only: Annotated[str | None, typer.Option(metavar="LIST", help="Only these workloads of the plan, with commas between.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print exactly what would run, and start nothing.")] = False,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="What the plan calls this machine (default: its host name).")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the engine. Repeatable.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where files for an engine go (default: the jobs' folder).")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Refuse, rather than wait, where another process holds a device.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit to Slurm and end; see the jobs with gpualloc status.")] = False,
    grace_s: Annotated[float, typer.Option(help="Seconds between SIGTERM and SIGKILL, to save a checkpoint in.")] = 10.0,
    jobs_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Logs and progress (default: jobs, beside the state file).")
    ] = None,
    state: State = None,
    store: Annotated[Path | None, typer.Option("--store", metavar="PATH", help="Results file that rates and faults go to.")] = None,
    as_json: Json = False,
) -> None:
    """Run a plan: start its jobs here or on an engine, watch them, start them again from their checkpoint, keep their rates.

    Jobs of the plan that follow one another on a GPU do so. Two gpualloc never hold one GPU. Ctrl-C and SIGTERM end the jobs, which
    save a checkpoint first where they train with gpualloc.train; a kill -9 of this command ends them, too.

    Examples:
      gpualloc run plan.json
      gpualloc run plan.json --only vision,text --dry-run
      gpualloc run plan.json --engine slurm -o partition=gpu -o time=2:00:00
      gpualloc run plan.json --engine kubernetes -o image=registry/train:1 -o queue=team
    """
    from gpualloc.launch.engines import ENGINES
    from gpualloc.launch.job import jobs_of
    from gpualloc.launch.schema import default_state_path
    from gpualloc.plan.records import read_plan
    from gpualloc.store import default_store_path

    if not grace_s >= 0:
        raise UsageError(f"--grace-s {grace_s:g} must be 0 or more")
    if detach and engine != "slurm":
        raise UsageError(f"--detach is for --engine slurm, whose jobs run on without gpualloc; those of {engine} do not")
    names = tuple(name.strip() for name in only.split(",")) if only else ()
    jobs = jobs_of(read_plan(plan), only=names)
    if not jobs:
        raise UsageError(f"{plan} starts no workload; see why in its list of those that wait")
    state = state or default_state_path()
    jobs_folder = jobs_folder or state.with_name("jobs")
    if engine not in ENGINES:
        _write_files(engine, jobs, option or [], output or jobs_folder, state, dry_run=dry_run, as_json=as_json)
    elif dry_run:
        _print_dry_run(engine, jobs, option or [], jobs_folder, node, as_json=as_json)
    else:
        _run(
            engine,
            jobs,
            option or [],
            jobs_folder,
            node,
            state,
            store or default_store_path(),
            grace_s,
            detach=detach,
            is_patient=not no_wait,
            as_json=as_json,
        )


def _run(
    engine: str,
    jobs: Sequence[Job],
    options: Sequence[str],
    jobs_folder: Path,
    node: str | None,
    state: Path,
    results: Path,
    grace_s: float,
    *,
    detach: bool,
    is_patient: bool,
    as_json: bool,
) -> None:
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.launch.engines import make_engine
    from gpualloc.launch.runner import Runner

    runner = Runner(
        engine=make_engine(engine, options, node=node, warn=lambda text: _say(f"gpualloc: warning: {text}")),
        state=state,
        jobs_folder=jobs_folder.absolute(),
        results=results,
        say=_say,
        is_patient=is_patient,
        term_to_kill_s=grace_s,
    )
    if detach:
        _print(runner.submit(jobs), as_json=as_json)
        return
    try:
        with interruptible():
            runner.run(jobs)
    except Interrupted as interruption:
        _say(f"interrupted ({interruption}): no job is left")
        _print(runner.running, as_json=as_json)
        raise typer.Exit(interruption.exit_code) from None
    _print(runner.running, as_json=as_json)
    if any(running.status != "complete" for running in runner.running):
        raise typer.Exit(1)


def _print(jobs: Sequence[RunningJob], *, as_json: bool) -> None:
    from gpualloc.cli.jobs_text import job_json, print_jobs
    from gpualloc.cli.tables import print_json
    from gpualloc.launch.status import Seen

    seen = [Seen.of_running(running) for running in jobs]
    if as_json:
        print_json([job_json(each) for each in seen])
    else:
        print_jobs(seen)


def _print_dry_run(engine: str, jobs: Sequence[Job], options: Sequence[str], folder: Path, node: str | None, *, as_json: bool) -> None:
    from gpualloc.cli.tables import print_json
    from gpualloc.launch.engines import make_engine

    made = make_engine(engine, options, node=node, warn=_say)
    texts = {job.name: made.render(job, folder / job.name) for job in jobs}
    if as_json:
        print_json([{"name": name, "engine": engine, "text": text} for name, text in texts.items()])
        return
    for name, text in texts.items():
        print(f"# {name}\n{text}\n")


def _write_files(
    engine: str, jobs: Sequence[Job], options: Sequence[str], folder: Path, state: Path, *, dry_run: bool, as_json: bool
) -> None:
    from gpualloc.cli.tables import print_json
    from gpualloc.launch.engines import make_file_format
    from gpualloc.launch.job_files import write_files

    made = make_file_format(engine, options)
    if dry_run:
        texts = {job.name: made.render(job) for job in jobs}
        if as_json:
            print_json([{"name": name, "engine": engine, "text": text} for name, text in texts.items()])
        else:
            print("\n".join(f"# {name}\n{text}" for name, text in texts.items()))
        return
    written = write_files(made, jobs, folder, state)
    if as_json:
        print_json([{"name": each.name, "engine": engine, "file": str(each.path), "submit": each.submit} for each in written])
        return
    for each in written:
        print(f"{each.name}: {each.path}\n  submit it with: {each.submit}")


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
