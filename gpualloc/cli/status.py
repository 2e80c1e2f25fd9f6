"""`gpualloc status`: the jobs that `gpualloc run` started, on every engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gpualloc.cli.run import Json, State

_NUM_SHOWN = 20


def status(
    all_jobs: Annotated[bool, typer.Option("--all", help="Also jobs that ended, beyond the newest 20.")] = False,
    leases: Annotated[bool, typer.Option("--leases", help="Show who holds which device of this machine.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show the jobs that gpualloc run started: how far they are, how fast, and what went wrong.

    Examples:
      gpualloc status
      gpualloc status --leases
      gpualloc status --all --json
    """
    from gpualloc.cli.jobs_text import job_json, print_jobs
    from gpualloc.cli.tables import print_json, printable
    from gpualloc.launch.schema import default_state_path
    from gpualloc.launch.status import look

    path = state or default_state_path()
    if leases:
        return _print_leases(path, as_json=as_json)
    jobs = look(path) if path.exists() else []
    jobs = jobs if all_jobs else [job for number, job in enumerate(jobs) if number < _NUM_SHOWN or job.status in ("queued", "running")]
    if as_json:
        print_json([job_json(job) for job in jobs])
    elif jobs:
        print_jobs(jobs)
    else:
        print(f"nothing was run yet by {printable(str(path))}: run gpualloc run plan.json", file=sys.stderr)
    return None


def _print_leases(path: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    from gpualloc.cli.tables import output_console, print_json, printable, text_table
    from gpualloc.launch.leases import LeaseStore

    held = []
    if path.exists():
        with LeaseStore(path, create=False) as store:
            held = store.held()
    if as_json:
        print_json([{**asdict(lease), "is_over": lease.is_over} for lease in held])
        return
    table = text_table("devices", "held by", "process", "since (UTC)", "", right=("process",))
    for lease in held:
        cells = (", ".join(lease.devices), lease.holder, str(lease.owner.pid), lease.taken_at_utc[:19].replace("T", " "))
        table.add_row(*map(printable, cells), "over" if lease.is_over else "")
    if held:
        output_console().print(table)
    else:
        print("no device is held", file=sys.stderr)
