"""The report of `gpualloc watch`: what was used and what was wasted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from rich.console import Console
from rich.text import Text

from gpualloc.cli.columns import Column, Row, gib_text, number_text, table_lines
from gpualloc.cli.tables import printable
from gpualloc.cli.watch_tables import STATE_STYLE, device_label
from gpualloc.watching.durations import duration_text
from gpualloc.watching.waste import DeviceUse, HolderWaste, Price, UserWaste, WasteReport

_MAX_ROWS = 20  # of spans, of processes and of users


def print_report(report: WasteReport, console: Console) -> None:
    """Devices, spans, processes, users, and the sum."""
    for line in _device_rows(report, console.width):
        console.print(line, soft_wrap=True)
    if any(device.spans for device in report.devices):
        console.print()
        for line in _span_rows(report, console.width):
            console.print(line, soft_wrap=True)
    if report.processes:
        console.print()
        for line in _process_use_rows(report, console.width):
            console.print(line, soft_wrap=True)
    for title, holders in (("wasted by process", report.by_process), ("wasted by user", report.by_user)):
        if any(holder.who != "unknown" for holder in holders):
            console.print()
            for line in _holder_rows(title, holders, report.price, console.width):
                console.print(line, soft_wrap=True)
    console.print()
    unit = "GPU-hours" if any(device.kind != "cpu" for device in report.devices) else "host-hours (CPU, not comparable with a GPU)"
    cost = "" if report.cost is None or report.price is None else f", {report.cost:,.2f} {printable(report.price.currency)}"
    share = f" ({report.wasted_device_hours / report.observed_device_hours:.0%})" if report.observed_device_hours else ""
    total = f"wasted: {_hours(report.wasted_device_hours)} of {_hours(report.observed_device_hours)} {unit}{share}{cost}"
    console.print(Text(total, style="bold"))
    rule = report.rule
    explained = (
        f"idle: below {rule.idle_below_percent:g} % for {duration_text(rule.for_s)} or longer; low: below {rule.bar_percent:g} %; "
        "wasted: the unused share of that time. Utilisation of a GPU says that a kernel ran, not that it filled the GPU."
    )
    console.print(Text(explained, style="dim"))


def _device_rows(report: WasteReport, width: int) -> list[Text]:
    many_hosts = len({device.host for device in report.devices}) > 1
    columns = (
        Column("device", 10, is_left=True),
        Column("util %", 9),
        Column("peak GiB", 4),
        Column("power W", 3),
        Column("seen", 6),
        Column("idle", 5),
        Column("low", 5),
        Column("wasted h", 8),
        *_cost_column(report.price),
        Column("name", 2, is_left=True),
        Column("host", 7 if many_hosts else 1, is_left=True),
    )
    rows = []
    for device in report.devices:
        rows.append(
            Row(
                (
                    device_label(device.kind, device.device_index, device.device_uuid),
                    number_text(device.mean_utilisation_percent),
                    "-" if device.peak_memory_used_bytes is None else f"{device.peak_memory_used_bytes / 2**30:.1f}",
                    number_text(device.mean_power_w),
                    _seconds(device.observed_s + device.unknown_s),
                    *(_seconds(seconds) if device.is_judged else "-" for seconds in (device.idle_s, device.low_s)),
                    _hours(device.wasted_device_hours) if device.is_judged else "-",
                    *_cost_cell(device.cost if device.is_judged else None, report.price),
                    printable(device.device_name),
                    printable(device.host),
                ),
                STATE_STYLE["idle"] if device.idle_s else STATE_STYLE["low"] if device.low_s else "",
            )
        )
    return table_lines(columns, rows, width)


def _span_rows(report: WasteReport, width: int) -> list[Text]:
    columns = (
        Column("device", 10, is_left=True),
        Column("state", 9, is_left=True),
        Column("from (UTC)", 7, is_left=True),
        Column("to", 4, is_left=True),
        Column("for", 6),
        Column("util %", 5),
        Column("wasted h", 8),
        *_cost_column(report.price),
        Column("host", 1, is_left=True),
    )
    found: list[tuple[DeviceUse, int]] = [(device, place) for device in report.devices for place in range(len(device.spans))]
    found.sort(key=lambda pair: -pair[0].spans[pair[1]].wasted_device_hours)
    rows = []
    for device, place in found[:_MAX_ROWS]:
        span = device.spans[place]
        cost = None if report.price is None else span.wasted_device_hours * report.price.amount_per_hour
        rows.append(
            Row(
                (
                    device_label(device.kind, device.device_index, device.device_uuid),
                    span.kind,
                    _moment(span.start_unix_s),
                    _moment(span.end_unix_s),
                    duration_text(span.observed_s),
                    number_text(span.mean_utilisation_percent),
                    _hours(span.wasted_device_hours),
                    *_cost_cell(cost, report.price),
                    printable(device.host),
                ),
                STATE_STYLE[span.kind],
            )
        )
    lines = table_lines(columns, rows, width)
    if len(found) > _MAX_ROWS:
        lines.append(Text(f"{len(found) - _MAX_ROWS} spans more: see them with --json", style="dim"))
    return lines


def _process_use_rows(report: WasteReport, width: int) -> list[Text]:
    columns = (
        Column("process", 10, is_left=True),
        Column("device", 8, is_left=True),
        Column("seen", 7),
        Column("SM %", 6),
        Column("peak GPU GiB", 5),
        Column("CPU %", 4),
        Column("peak RSS GiB", 2),
        Column("user", 3, is_left=True),
    )
    rows = [
        Row(
            (
                printable(f"{use.pid} {use.command or ''}".strip()),
                device_label(use.device_kind, use.device_index, use.device_uuid),
                _seconds(use.observed_s),
                number_text(use.mean_sm_utilisation_percent),
                gib_text(use.peak_gpu_memory_bytes),
                number_text(use.mean_cpu_percent),
                gib_text(use.peak_rss_bytes),
                printable(use.user or "-"),
            )
        )
        for use in report.processes[:_MAX_ROWS]
    ]
    lines = table_lines(columns, rows, width)
    if len(report.processes) > _MAX_ROWS:
        lines.append(Text(f"{len(report.processes) - _MAX_ROWS} processes more: see them with --json", style="dim"))
    return lines


def _holder_rows(title: str, holders: Sequence[HolderWaste] | Sequence[UserWaste], price: Price | None, width: int) -> list[Text]:
    columns = (Column(title, 10, is_left=True), Column("hours", 9), *_cost_column(price), Column("user", 5, is_left=True))
    is_process = title == "wasted by process"
    rows = []
    for holder in holders[:_MAX_ROWS]:
        name = {"nobody": "(nobody on the GPU)", "unknown": "(not known)"}.get(holder.who)
        if name is None and isinstance(holder, HolderWaste):
            name = f"{holder.pid} {holder.command or ''}".strip()
        user = holder.user or ""
        cells = (printable(name or user), _hours(holder.wasted_device_hours), *_cost_cell(holder.cost, price))
        rows.append(Row((*cells, printable(user) if is_process else "")))
    return table_lines(columns if is_process else columns[:-1], rows, width)


def _cost_column(price: Price | None) -> tuple[Column, ...]:
    return () if price is None else (Column(f"cost {printable(price.currency)}", 8),)


def _cost_cell(cost: float | None, price: Price | None) -> tuple[str, ...]:
    return () if price is None else ("-" if cost is None else f"{cost:,.2f}",)


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.095 or not hours else f"{hours:.4f}"


def _seconds(seconds: float) -> str:
    return duration_text(seconds) if seconds else "0"


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%m-%d %H:%M:%S")
