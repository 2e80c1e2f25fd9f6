"""What compare_hooks.py reports: figures per hook from the blocks of all rounds, and the table of a case.

Ratios and exposed communication are formed within each round and the median is taken over the rounds, so that what slows a round
down as a whole cancels.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from benchmarks.compare_rank import COMPUTE, ComparisonReport, HookFigures
from gpualloc.cli.tables import output_console, text_table

FIXED_HOOKS = ("none", "torch_fp16", "torch_bf16", "gpualloc_fp16")  # what a user could choose without measuring
_REFERENCE = "torch_fp16"  # whose exposed communication is the measure
_MIN_WIDTH = 160  # columns
_COLUMNS = ("step ms", "p10-p90", "exposed ms", "wire MB", "link MB", "/ none", "/ best", "exposed / fp16")


def compute_ms(report: ComparisonReport) -> float:
    """A step without synchronisation."""
    return statistics.median(report.hooks[COMPUTE].block_step_times_s) * 1e3


def rows(report: ComparisonReport, hooks: Sequence[str], died: dict[str, str]) -> list[dict[str, Any]]:
    """One row per hook asked for, in that order; figures in ms and bytes, None where there are none.

    Args:
        died: hook -> how, of those that are not in the report.
    """
    measured = {hook: figures for hook, figures in report.hooks.items() if figures.skip_reason is None}
    times_s = {hook: figures.block_step_times_s for hook, figures in measured.items()}
    medians_s = {hook: statistics.median(times_s[hook]) for hook in measured}
    best_fixed = min((hook for hook in FIXED_HOOKS if hook in measured), key=medians_s.__getitem__, default=None)
    exposed_s = {hook: _differences(times_s[hook], times_s[COMPUTE]) for hook in measured}
    rows = []
    for hook in hooks:
        if hook in died:
            rows.append({"hook": hook, "status": "failed", "reason": died[hook]})
        elif hook not in measured:
            rows.append({"hook": hook, "status": "skipped", "reason": report.hooks[hook].skip_reason})
        else:
            rows.append(
                {
                    "hook": hook,
                    "status": "ok",
                    "step_ms": _spread([time_s * 1e3 for time_s in times_s[hook]]),
                    "exposed_ms": _spread([time_s * 1e3 for time_s in exposed_s[hook]]),
                    "ratio_to_none": _spread(_ratios(times_s[hook], times_s.get("none"))),
                    "best_fixed": best_fixed,
                    "ratio_to_best_fixed": _spread(_ratios(times_s[hook], times_s.get(best_fixed or ""))),
                    "exposed_ratio_to_torch_fp16": _exposed_ratio(exposed_s[hook], exposed_s.get(_REFERENCE)),
                    **_details(measured[hook]),
                }
            )
    return rows


def _details(figures: HookFigures) -> dict[str, Any]:
    return {
        "wire_bytes_per_step": figures.wire_bytes_per_step,
        "link_bytes_per_step": figures.link_bytes_per_step,
        "peak_memory_bytes": figures.peak_memory_bytes,
        "num_warmup_steps": figures.num_warmup_steps,
        "loss_end": figures.loss_end,
        "stats": figures.stats,
        "explanation": figures.explanation,
        "round_step_ms": [time_s * 1e3 for time_s in figures.block_step_times_s],
    }


def _differences(times: Sequence[float], base: Sequence[float]) -> list[float]:
    return [time - compute for time, compute in zip(times, base, strict=True)]


def _ratios(times: Sequence[float], base: Sequence[float] | None) -> list[float]:
    return [] if base is None else [time / other for time, other in zip(times, base, strict=True)]


def _exposed_ratio(exposed: Sequence[float], reference: Sequence[float] | None) -> float | None:
    """Of the medians: a single round's difference can be zero. None where the reference exposes nothing."""
    if reference is None or statistics.median(reference) <= 0:
        return None
    return statistics.median(exposed) / statistics.median(reference)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def print_case(case: dict[str, Any]) -> None:
    """The case as a table on stdout."""
    console = output_console()
    console.width = max(console.width, _MIN_WIDTH)  # figures must not be cut off
    console.print(Text(f"{case['description']}: {case['link']}", style="bold"), soft_wrap=True)
    for problem in ("skipped", "failed"):
        if problem in case:
            console.print(f"{problem}: {case[problem]}\n", soft_wrap=True)
            return
    table = text_table("hook", *_COLUMNS, right=_COLUMNS, fixed=("hook",))
    problems = []
    for row in case["hooks"]:
        if row["status"] == "ok":
            table.add_row(row["hook"], *_cells(row))
        else:
            problems.append(f"{row['hook']}  {row['status']}: {row['reason']}")
    console.print(table)
    for problem in problems:
        console.print(Text(problem, style="dim"), soft_wrap=True)
    measured = case["measured_mbit_s"]
    link = f"; links carry {min(measured):.0f} to {max(measured):.0f} Mbit/s" if measured else ""
    best = next((row["best_fixed"] for row in case["hooks"] if row["status"] == "ok"), None)
    notes = f"compute {case['compute_ms']:.2f} ms; best: {best}, of {', '.join(FIXED_HOOKS)}; fp16: {_REFERENCE}{link}\n"
    console.print(Text(notes, style="dim"), soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    step, exposed = row["step_ms"], row["exposed_ms"]
    return [
        f"{step['median']:.2f}",
        f"{step['p10']:.2f}-{step['p90']:.2f}",
        f"{exposed['median']:.2f}",
        *(_megabytes(row[name]) for name in ("wire_bytes_per_step", "link_bytes_per_step")),
        *("-" if row[name] is None else f"{row[name]['median']:.3f}" for name in ("ratio_to_none", "ratio_to_best_fixed")),
        "-" if row["exposed_ratio_to_torch_fp16"] is None else f"{row['exposed_ratio_to_torch_fp16']:.2f}",
    ]


def _megabytes(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e6:.2f}"
