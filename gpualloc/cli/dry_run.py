"""`gpualloc bench --dry-run`: the cases as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gpualloc.bench.dry_run import PlannedCase, estimate_cases, plan_cases, read_history
from gpualloc.bench.grid import GridCell
from gpualloc.bench.settings import RunSettings
from gpualloc.cli.measurements_text import case_label
from gpualloc.cli.tables import output_console, print_json, printable, text_table
from gpualloc.records import Environment
from gpualloc.store import ResultsStore


def print_dry_run(cells: Sequence[GridCell], settings: RunSettings, environment: Environment, store: Path, *, as_json: bool) -> None:
    """The cases in the order they would run, on stdout. The store is read for earlier measurements, if it is there."""
    history = []
    if store.exists():
        with ResultsStore(store, create=False) as results:
            history = read_history(results)
    planned = plan_cases(cells, settings, estimate_cases(cells, environment, history))
    if as_json:
        print_json(_as_json(planned, settings))
    else:
        _print_table(planned, settings, output_console())


def _print_table(planned: Sequence[PlannedCase], settings: RunSettings, console: Console) -> None:
    run = [row for row in planned if row.rounds]
    skipped = [row for row in planned if row.skip_reason is not None]
    left_out = [row for row in planned if not row.rounds and row.skip_reason is None]
    if run:
        table = text_table("", "case", "rounds", "minutes", right=("", "rounds", "minutes"))
        for number, row in enumerate(run, start=1):
            table.add_row(str(number), printable(case_label(row.case)), str(row.rounds), f"{_minutes(row):.1f}")
        console.print(table)
    for reason in dict.fromkeys(row.skip_reason for row in skipped):
        _print_list(f"skipped: {reason}", [row for row in skipped if row.skip_reason == reason], console)
    if left_out:
        _print_list("left out, over the budget; the most informative first", left_out, console)
    total = f"{len(run)} cases in about {sum(map(_minutes, run)):.1f} minutes"
    others = f", {len(skipped)} skipped" + ("" if settings.max_minutes is None else f", {len(left_out)} left out")
    console.print(Text(f"\n{total}{others}"))
    bases = {row.estimate.basis for row in run if row.estimate is not None}
    if bases:
        console.print(Text(f"estimates: {'; '.join(sorted(bases))}", style="dim"))


def _print_list(title: str, rows: Sequence[PlannedCase], console: Console) -> None:
    console.print(Text(f"\n{printable(title)}", style="dim"))
    for row in rows:
        console.print(Text(f"  {printable(case_label(row.case))}", style="dim"))


def _minutes(row: PlannedCase) -> float:
    return 0.0 if row.estimate is None else row.rounds * row.estimate.seconds / 60


def _as_json(planned: Sequence[PlannedCase], settings: RunSettings) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "estimated_minutes": sum(map(_minutes, planned)),
        "cases": [{"case_key": row.case.key(), "label": case_label(row.case), **asdict(row)} for row in planned],
    }
