"""`gpualloc stop`: ends jobs, on every engine."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from gpualloc.cli.run import State
from gpualloc.errors import GpuallocError, UsageError

_POLL_S = 0.2


def stop(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Workloads or numbers of jobs; see gpualloc status.")] = None,
    all_jobs: Annotated[bool, typer.Option("--all", help="All that have not ended.")] = False,
    timeout_s: Annotated[float, typer.Option(help="How long to wait until they have ended.")] = 60.0,
    state: State = None,
) -> None:
    """Stop jobs: those that train with gpualloc.train save a checkpoint first and can be run again from it.

    Examples:
      gpualloc stop vision
      gpualloc stop --all
    """
    from gpualloc.launch.jobs import ENDED, JobStore
    from gpualloc.launch.schema import default_state_path
    from gpualloc.launch.status import end_orphan

    if bool(jobs) == all_jobs:
        raise UsageError("name jobs, or --all; see gpualloc status")
    with JobStore(state or default_state_path(), create=False) as store:
        found = [store.find(name) for name in jobs] if jobs else [job for job in store.jobs() if job.status not in ENDED]
        alive = [job for job in found if job.status not in ENDED]
        for job in found:
            if job.status in ENDED:
                print(f"{job.name}: is {job.status} already", file=sys.stderr)
        for job in alive:
            if job.is_orphaned:
                end_orphan(store, job)
            else:
                store.ask_to_stop(job.job_id)
        deadline_s = time.monotonic() + timeout_s
        waiting = alive
        while waiting:
            waiting = [job for job in waiting if store.find(str(job.job_id)).status not in ENDED]
            if waiting and time.monotonic() > deadline_s:
                names = ", ".join(f"{job.name} (job {job.job_id})" for job in waiting)
                raise GpuallocError(f"not ended after {timeout_s:g} s: {names}; look at them with: gpualloc logs NAME --agent")
            if waiting:
                time.sleep(_POLL_S)
        for job in alive:
            ended = store.find(str(job.job_id))
            print(f"{job.name}: {ended.status}")
