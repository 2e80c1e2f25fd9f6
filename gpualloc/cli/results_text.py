"""What `gpualloc results` prints of whole runs: a list of them, and two side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from gpualloc.cli import formats
from gpualloc.cli.measurements_text import case_label
from gpualloc.cli.tables import printable, text_table
from gpualloc.store import Comparison, Run


def print_runs(runs: Sequence[Run], console: Console) -> None:
    """Two lines for each run: commands are too long for a column."""
    if formats.chosen() != "table":
        columns = ("run", "started (UTC)", "status", "ok", "cases", "device", "command")
        console.print(formats.table_text(columns, map(_run_cells, runs)))
        return
    console.print(Text(" run  started (UTC)     status       cases", style="dim"))
    for run in runs:
        num_cases = sum(run.case_counts.values())
        started = run.started_at_utc[:16].replace("T", " ")
        so_far = "" if run.status == "complete" else " so far"
        line = f"{run.run_id:4}  {started}  {run.status:11}  {run.case_counts.get('ok', 0)} of {num_cases} ok{so_far}"
        device = run.environment.device_name if run.environment else "unreadable environment"
        console.print(Text(printable(line)), soft_wrap=True)
        console.print(Padding(Text(printable(f"{device}: {run.command}"), style="dim"), (0, 0, 0, 6)))


def print_comparison(comparison: Comparison, a: int, b: int, console: Console) -> None:
    """Step times of run `a` beside those of run `b`, then the cases that only one of them has."""
    if comparison.compared:
        columns = (f"run {a} ms", f"run {b} ms", f"{b}/{a}")
        table = text_table("case", *columns, f"run {b} is", right=columns, fixed=[f"run {b} is"])
        style = {"faster": "green", "slower": "red", "not certain": "yellow", "no figures": "dim"}
        for row in comparison.compared:
            times = [f"{side.step_time_s * 1e3:.2f}" if side.step_time_s is not None else printable(side.status) for side in (row.a, row.b)]
            ratio = "-" if row.step_time_ratio is None else f"{row.step_time_ratio:.3f}"
            table.add_row(printable(case_label(row.case)), *times, ratio, Text(row.verdict, style=style[row.verdict]))
        console.print(table)
    else:
        console.print(f"runs {a} and {b} have no case in common")
    for run_id, cases in ((a, comparison.only_in_a), (b, comparison.only_in_b)):
        if cases:
            console.print(f"\nonly in run {run_id}:")
            for case in cases:
                console.print("  " + printable(case_label(case)))


def _run_cells(run: Run) -> list[str]:
    counts = (str(run.case_counts.get("ok", 0)), str(sum(run.case_counts.values())))
    device = run.environment.device_name if run.environment else "unreadable environment"
    return [str(run.run_id), run.started_at_utc, run.status, *counts, printable(device), printable(run.command)]
