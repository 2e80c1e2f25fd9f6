"""Jobs as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.text import Text

from gpualloc.cli.tables import output_console, printable, text_table
from gpualloc.launch.status import Seen

_FULL_WIDTH = 100  # columns: below it some are left out
_STYLES = {"failed": "red", "lost": "red", "running": "green", "stopped": "yellow"}


def print_jobs(jobs: Sequence[Seen]) -> None:
    """A row each; below, why those that did not end well did not, and their faults."""
    console = output_console()
    columns: tuple[str, ...] = ("job", "name", "status", "steps", "samples/s", "loss", "starts", "engine", "reference")
    if console.width < _FULL_WIDTH:
        columns = columns[:7]
    if all(seen.engine is None for seen in jobs):
        columns = columns[:7]
    table = text_table(*columns, right=("job", "steps", "samples/s", "loss", "starts"), fixed=("status",))
    for seen in jobs:
        cells = _cells(seen)
        table.add_row(*(cells[name] for name in columns), style=_STYLES.get(seen.status, ""))
    console.print(table)
    for seen in jobs:
        for fault in seen.faults:
            console.print(Text(printable(f"{seen.name}, start {fault.attempt}, {fault.at_utc}: {fault.message}"), style="dim"))
        if seen.reason is not None:
            console.print(Text(printable(f"{seen.name} {seen.status}: {seen.reason}")), soft_wrap=True)


def job_json(seen: Seen) -> dict[str, Any]:
    rate = seen.progress.samples_per_s if seen.progress is not None else None
    return {**asdict(seen), "folder": str(seen.folder), "samples_per_s": rate}


def _cells(seen: Seen) -> dict[str, str]:
    progress = seen.progress
    rate = progress.samples_per_s if progress is not None else None
    return {
        "job": str(seen.job_id),
        "name": printable(seen.name),
        "status": seen.status,
        "steps": "" if progress is None else f"{progress.step}{f'/{progress.num_steps}' if progress.num_steps else ''}",
        "samples/s": "" if rate is None else f"{rate:,.1f}",
        "loss": "" if progress is None or progress.loss is None else f"{progress.loss:.4g}",
        "starts": str(seen.num_attempts),
        "engine": seen.engine or "",
        "reference": seen.reference or "",
    }
