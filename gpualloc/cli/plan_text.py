"""A plan as tables and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from gpualloc.cli.columns import Column, Row, table_lines
from gpualloc.cli.tables import output_console, printable
from gpualloc.plan.difference import Difference, devices_text, duration_text
from gpualloc.plan.outcome import Considered, Impossible, Planned
from gpualloc.plan.records import Assignment, plan_to_json
from gpualloc.plan.smallest_change import Remedy

_MIN_REASON_WIDTH, _REASON_SHARE = 26, 0.4  # columns, and of the width
_GAP = "  "
_COLUMNS = (
    Column("GPUs", 10, is_left=True),
    Column("how", 4, is_left=True),
    Column("batch", 2),
    Column("samples/s", 7),
    Column("low-high", 1),
    Column("alone", 8),
    Column("cost", 6),
    Column("GiB", 3),
)
_PLANNED = (
    Column("workload", 10, is_left=True),
    Column("GPUs", 9, is_left=True),
    Column("devices", 7, is_left=True),
    Column("how", 3, is_left=True),
    Column("batch", 2),
    Column("start", 6),
    Column("finish", 8),
    Column("samples/s", 4),
    Column("cost", 5),
    Column("fairness", 1),
)


def plan_json(planned: Planned, changes: Sequence[Difference]) -> dict[str, Any]:
    """Everything the tables say."""
    return {
        "plan": plan_to_json(planned.plan),
        "considered": [asdict(row) for row in planned.considered],
        "method": planned.method,
        "score": planned.score,
        "optimality_gap": planned.gap,
        "mean_jct_s": planned.mean_jct_s,
        "makespan_s": planned.makespan_s,
        "cost": None if planned.cost is None else asdict(planned.cost),
        "finish_time_fairness": dict(planned.fairness),
        "difference": [{**asdict(change), "text": change.text} for change in changes],
        "notes": list(planned.notes),
    }


def impossible_json(impossible: Impossible, remedy: Remedy | None) -> dict[str, Any]:
    changes = [] if remedy is None else [{"text": change.text, "size": change.size} for change in remedy.changes]
    return {
        "plan": None,
        "reasons": list(impossible.reasons),
        "is_proven": impossible.is_proven,
        "smallest_change": changes,
        "considered": [asdict(row) for row in impossible.considered],
    }


def print_plan(planned: Planned, changes: Sequence[Difference]) -> None:
    """What was considered, what was chosen, what changes."""
    console = output_console()
    print_considered(planned.considered, console)
    plan = planned.plan
    if plan.assignments:
        rows = [Row(_planned_cells(each, planned)) for each in plan.assignments]
        for line in table_lines(_PLANNED, rows, console.width):
            console.print(line, soft_wrap=True)
    for slot in plan.measuring:
        where = f"{len(slot.devices)} x {slot.gpu_type} ({devices_text(slot.devices)})"
        when = f"from {duration_text(slot.start_s)} to {duration_text(slot.finish_s)}"
        _say(f"{slot.workload} is measured first, on {where} {when}: {' '.join(slot.command)}", console, "yellow")
    for waiting in plan.waiting:
        _say(f"{waiting.workload} waits: {waiting.reason}", console, "yellow")
    console.print()
    _say(_summary(planned), console, "bold")
    for change in changes:
        _say(change.text, console, "" if change.kind == "stays" else "bold")
    for note in planned.notes:
        _say(note, console, "yellow")
    if any(row.offer.rate is not None and row.offer.rate.source != "table" for row in planned.considered if row.is_chosen):
        sources = sorted({row.offer.rate.source for row in planned.considered if row.is_chosen and row.offer.rate is not None})
        _say(f"rates: {'; '.join(sources)}", console, "dim")
    _say("alone: from its own start to its end; finish and start: from now; fairness: finish over that on an equal share", console, "dim")


def print_considered(considered: Sequence[Considered], console: Console) -> None:
    """By workload: every offer with its figures, and the reason why it was not chosen beside it."""
    if not considered:
        return
    reason_width = max(_MIN_REASON_WIDTH, int(console.width * _REASON_SHARE))
    rows = [Row(_cells(row), "bold" if row.is_chosen else "dim" if row.offer.refusal else "") for row in considered]
    lines = table_lines(_COLUMNS, rows, max(20, console.width - reason_width - len(_GAP) - 2))
    width = max(len(line) for line in lines)
    reason_width = max(_MIN_REASON_WIDTH, console.width - width - len(_GAP) - 2)
    name = None
    for row, line in zip(considered, lines[1:], strict=True):
        if row.offer.workload != name:
            console.print(Text(printable(row.offer.workload), style="bold"), soft_wrap=True)
            if name is None:
                console.print(Text("  " + lines[0].plain.ljust(width) + _GAP + "chosen, or why not", style="dim"), soft_wrap=True)
            name = row.offer.workload
        reason = "chosen" if row.is_chosen else (row.why_not or "")
        first, *rest = textwrap.wrap(printable(reason), reason_width) or [""]
        mark = "* " if row.is_chosen else "  "
        console.print(Text(mark + line.plain.ljust(width) + _GAP + first, style=line.style), soft_wrap=True)
        for more in rest:
            console.print(Text(" " * (width + len(_GAP) + 2) + more, style=line.style), soft_wrap=True)
    console.print()


def _say(text: str, console: Console, style: str) -> None:
    """A sentence, broken between words."""
    for number, line in enumerate(textwrap.wrap(printable(text), console.width - 2) or [""]):
        console.print(Text(("  " if number else "") + line, style=style), soft_wrap=True)


def _cells(row: Considered) -> list[str]:
    offer = row.offer
    nodes = f" on {offer.num_nodes} nodes" if offer.num_nodes > 1 else ""
    rate = offer.rate
    return [
        printable(f"{offer.num_gpus} x {offer.gpu_type}{nodes}"),
        "-" if offer.strategy is None else _how(offer.strategy, offer.hook, offer.precision or ""),
        "-" if rate is None else _batch(offer.per_device_batch_size, offer.grad_accum_steps),
        "-" if rate is None else _figure(rate.value),
        "-" if rate is None or rate.low == rate.high else f"{_figure(rate.low)}-{_figure(rate.high)}",
        "-" if row.duration_s is None else duration_text(row.duration_s),
        "-" if row.money is None else f"{row.money:.2f}",
        "-" if offer.memory_gib is None else f"{offer.memory_gib:.1f}",
    ]


def _planned_cells(each: Assignment, planned: Planned) -> list[str]:
    rho = planned.fairness.get(each.workload)
    return [
        printable(each.workload),
        printable(f"{each.num_gpus} x {each.gpu_type}"),
        printable(devices_text(each.devices)) + ("" if not each.shares_gpu_with else " shared"),
        _how(each.strategy, each.hook, each.precision),
        _batch(each.per_device_batch_size, each.grad_accum_steps),
        "now" if each.start_s == 0 else duration_text(each.start_s),
        duration_text(each.finish_s),
        _figure(each.samples_per_s.value),
        "-" if each.cost is None else f"{each.cost.value:.2f} {each.cost.currency}",
        "-" if rho is None else f"{rho:.2f}",
    ]


def _summary(planned: Planned) -> str:
    plan = planned.plan
    parts = [f"{len(plan.assignments)} workloads planned for {plan.objective}" + (", pessimistic" if plan.is_pessimistic else "")]
    if planned.mean_jct_s is not None and planned.makespan_s is not None:
        parts.append(f"mean completion {duration_text(planned.mean_jct_s)}, all done in {duration_text(planned.makespan_s)}")
    if planned.cost is not None:
        parts.append(f"{planned.cost.value:.2f} {planned.cost.currency}")
    if planned.fairness:
        parts.append(f"fairness worst {max(planned.fairness.values()):.2f}")
    if planned.method == "exact":
        is_optimal = planned.gap is not None and planned.gap < 1e-5
        parts.append(
            "optimal (exact)" if is_optimal else f"exact method stopped, gap {planned.gap:.1%}" if planned.gap is not None else "exact"
        )
    else:
        parts.append("by the scalable method" + (f", gap at most {planned.gap:.1%}" if planned.gap is not None else ""))
    return "; ".join(parts)


def _how(strategy: str, hook: str, precision: str) -> str:
    return " ".join([strategy if hook == "none" else f"{strategy}/{hook}", precision])


def _batch(size: int, accum: int) -> str:
    return f"{size}" if accum == 1 else f"{size} x {accum}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
