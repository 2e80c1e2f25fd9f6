"""Tables of `gpualloc watch`: what is going on now, and what was wasted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from rich.console import Console, Group, RenderableType
from rich.text import Text

from gpualloc.cli.tables import printable
from gpualloc.watching.durations import duration_text
from gpualloc.watching.ledger import DeviceLedger
from gpualloc.watching.samples import DeviceSample, ProcessSample
from gpualloc.watching.waste import DeviceUse, HolderWaste, Price, UserWaste, WasteReport, WasteRule

_GAP = "  "
_MAX_ROWS = 20  # of spans and of processes
_STATE_STYLE = {"idle": "bold red", "low": "yellow"}


@dataclass(frozen=True)
class _Column:
    header: str
    importance: int  # the lowest leaves first where space is short
    is_left: bool = False


@dataclass(frozen=True)
class _Row:
    cells: Sequence[str]
    style: str = ""


def state_of(ledger: DeviceLedger, sample: DeviceSample, rule: WasteRule, *, is_host_with_gpus: bool) -> tuple[str, bool]:
    """("idle", "low" or "", long enough to be flagged)."""
    if is_host_with_gpus and sample.kind == "cpu":
        return "", False
    if ledger.idle_run_s >= rule.for_s:
        return "idle", True
    if ledger.low_run_s >= rule.for_s:
        return "low", True
    return ("idle" if ledger.idle_run_s else "low" if ledger.low_run_s else ""), False


def live_view(
    samples: Sequence[DeviceSample], ledgers: Sequence[DeviceLedger], rule: WasteRule, notes: Sequence[Text], *, width: int, max_rows: int
) -> RenderableType:
    """Devices, the processes on them (the largest first, as many as there is room for) and notes."""
    has_gpus = any(sample.kind != "cpu" for sample in samples)
    columns = (
        _Column("device", 10, is_left=True),
        _Column("util %", 9),
        _Column("memory GiB", 8),
        _Column("power W", 6),
        _Column("SM MHz", 4),
        _Column("°C", 3),
        _Column("state", 7, is_left=True),
        _Column("held back by", 2, is_left=True),
        _Column("name", 1, is_left=True),
    )
    rows = []
    for sample, ledger in zip(samples, ledgers, strict=True):
        state, is_flagged = state_of(ledger, sample, rule, is_host_with_gpus=has_gpus)
        since_s = ledger.idle_run_s if state == "idle" else ledger.low_run_s
        rows.append(
            _Row(
                (
                    device_label(sample.kind, sample.device_index, sample.device_uuid),
                    _number(sample.utilisation_percent),
                    _of(sample.memory_used_bytes, sample.memory_total_bytes),
                    "-" if sample.power_w is None else f"{sample.power_w:.0f}/{_number(sample.power_limit_w)}",
                    _number(sample.sm_clock_mhz),
                    _number(sample.temperature_c),
                    f"{state} {duration_text(since_s)}" if state else "",
                    ", ".join(sample.throttle_reasons or ()),
                    printable(sample.device_name),
                ),
                _STATE_STYLE[state] if is_flagged else "",
            )
        )
    parts: list[RenderableType] = [*_table(columns, rows, width)]
    on_devices = [
        (device_label(sample.kind, sample.device_index, sample.device_uuid), process)
        for sample in samples
        for process in sample.processes or ()
    ]
    room = max(0, max_rows - len(rows) - len(notes) - 4)
    if on_devices and room:
        on_devices.sort(key=lambda pair: (-(pair[1].gpu_memory_bytes or 0), -(pair[1].cpu_percent or 0.0)))
        parts += [Text(""), *_process_table(on_devices[:room], width)]
        if len(on_devices) > room:
            parts.append(Text(f"{len(on_devices) - room} processes more", style="dim"))
    return Group(*parts, *notes)


def sample_line(sample: DeviceSample) -> str:
    """A sample on one line, for a pipe or a log."""
    parts = [
        sample.time_utc[:19] + "Z",
        device_label(sample.kind, sample.device_index, sample.device_uuid),
        f"util {_number(sample.utilisation_percent)} %",
        f"memory {_of(sample.memory_used_bytes, sample.memory_total_bytes)} GiB",
    ]
    if sample.kind == "gpu":
        parts += [
            f"power {_number(sample.power_w)} W",
            f"SM {_number(sample.sm_clock_mhz)} MHz",
            f"{_number(sample.temperature_c)} °C",
        ]
    if sample.throttle_reasons:
        parts.append("held back by " + ", ".join(sample.throttle_reasons))
    if sample.processes is not None:
        parts.append(f"{len(sample.processes)} process{'' if len(sample.processes) == 1 else 'es'}")
    return printable(_GAP.join(parts))


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
        if any(holder.who not in ("nobody", "unknown") for holder in holders):
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
    console.print(
        Text(
            f"idle: below {rule.idle_below_percent:g} % for {duration_text(rule.for_s)} or longer; low: below {rule.bar_percent:g} %; wasted: "
            "the unused share of that time. Utilisation of a GPU says that a kernel ran, not that it filled the GPU.",
            style="dim",
        )
    )


def device_label(kind: str, index: int | None, uuid: str) -> str:
    """ "GPU 0", "MIG 1a2b3c4d", "host"."""
    if kind == "gpu":
        return f"GPU {index}"
    return "host" if kind == "cpu" else printable(uuid.replace("MIG-", "MIG ")[:12])


def _device_rows(report: WasteReport, width: int) -> list[Text]:
    many_hosts = len({device.host for device in report.devices}) > 1
    columns = (
        _Column("device", 10, is_left=True),
        _Column("util %", 9),
        _Column("peak GiB", 4),
        _Column("power W", 3),
        _Column("seen", 6),
        _Column("idle", 5),
        _Column("low", 5),
        _Column("wasted h", 8),
        *_cost_column(report.price),
        _Column("name", 2, is_left=True),
        _Column("host", 7 if many_hosts else 1, is_left=True),
    )
    rows = []
    for device in report.devices:
        rows.append(
            _Row(
                (
                    device_label(device.kind, device.device_index, device.device_uuid),
                    _number(device.mean_utilisation_percent),
                    "-" if device.peak_memory_used_bytes is None else f"{device.peak_memory_used_bytes / 2**30:.1f}",
                    _number(device.mean_power_w),
                    _seconds(device.observed_s + device.unknown_s),
                    *(_seconds(seconds) if device.is_judged else "-" for seconds in (device.idle_s, device.low_s)),
                    _hours(device.wasted_device_hours) if device.is_judged else "-",
                    *_cost_cell(device.cost if device.is_judged else None, report.price),
                    printable(device.device_name),
                    printable(device.host),
                ),
                _STATE_STYLE["idle"] if device.idle_s else _STATE_STYLE["low"] if device.low_s else "",
            )
        )
    return _table(columns, rows, width)


def _span_rows(report: WasteReport, width: int) -> list[Text]:
    columns = (
        _Column("device", 10, is_left=True),
        _Column("state", 9, is_left=True),
        _Column("from (UTC)", 7, is_left=True),
        _Column("to", 4, is_left=True),
        _Column("for", 6),
        _Column("util %", 5),
        _Column("wasted h", 8),
        *_cost_column(report.price),
        _Column("host", 1, is_left=True),
    )
    found: list[tuple[DeviceUse, int]] = [(device, place) for device in report.devices for place in range(len(device.spans))]
    found.sort(key=lambda pair: -pair[0].spans[pair[1]].wasted_device_hours)
    rows = []
    for device, place in found[:_MAX_ROWS]:
        span = device.spans[place]
        cost = None if report.price is None else span.wasted_device_hours * report.price.amount_per_hour
        rows.append(
            _Row(
                (
                    device_label(device.kind, device.device_index, device.device_uuid),
                    span.kind,
                    _moment(span.start_unix_s),
                    _moment(span.end_unix_s),
                    duration_text(span.observed_s),
                    _number(span.mean_utilisation_percent),
                    _hours(span.wasted_device_hours),
                    *_cost_cell(cost, report.price),
                    printable(device.host),
                ),
                _STATE_STYLE[span.kind],
            )
        )
    lines = _table(columns, rows, width)
    if len(found) > _MAX_ROWS:
        lines.append(Text(f"{len(found) - _MAX_ROWS} spans more: see them with --json", style="dim"))
    return lines


def _process_use_rows(report: WasteReport, width: int) -> list[Text]:
    columns = (
        _Column("process", 10, is_left=True),
        _Column("device", 8, is_left=True),
        _Column("seen", 7),
        _Column("SM %", 6),
        _Column("peak GPU GiB", 5),
        _Column("CPU %", 4),
        _Column("peak RSS GiB", 2),
        _Column("user", 3, is_left=True),
    )
    rows = [
        _Row(
            (
                printable(f"{use.pid} {use.command or ''}".strip()),
                device_label(use.device_kind, use.device_index, use.device_uuid),
                _seconds(use.observed_s),
                _number(use.mean_sm_utilisation_percent),
                _gib(use.peak_gpu_memory_bytes),
                _number(use.mean_cpu_percent),
                _gib(use.peak_rss_bytes),
                printable(use.user or "-"),
            )
        )
        for use in report.processes[:_MAX_ROWS]
    ]
    lines = _table(columns, rows, width)
    if len(report.processes) > _MAX_ROWS:
        lines.append(Text(f"{len(report.processes) - _MAX_ROWS} processes more: see them with --json", style="dim"))
    return lines


def _holder_rows(title: str, holders: Sequence[HolderWaste] | Sequence[UserWaste], price: Price | None, width: int) -> list[Text]:
    columns = (_Column(title, 10, is_left=True), _Column("hours", 9), *_cost_column(price), _Column("user", 5, is_left=True))
    is_process = title == "wasted by process"
    rows = []
    for holder in holders[:_MAX_ROWS]:
        name = {"nobody": "(nobody on the GPU)", "unknown": "(not known)"}.get(holder.who)
        if name is None and isinstance(holder, HolderWaste):
            name = f"{holder.pid} {holder.command or ''}".strip()
        user = holder.user or ""
        cells = (printable(name or user), _hours(holder.wasted_device_hours), *_cost_cell(holder.cost, price))
        rows.append(_Row((*cells, printable(user) if is_process else "")))
    return _table(columns if is_process else columns[:-1], rows, width)


def _process_table(on_devices: Sequence[tuple[str, ProcessSample]], width: int) -> list[Text]:
    columns = (
        _Column("pid", 10),
        _Column("device", 8, is_left=True),
        _Column("SM %", 6),
        _Column("GPU GiB", 7),
        _Column("CPU %", 5),
        _Column("RSS GiB", 4),
        _Column("user", 3, is_left=True),
        _Column("command", 9, is_left=True),
    )
    rows = [
        _Row(
            (
                str(process.pid),
                device,
                _number(process.sm_utilisation_percent),
                _gib(process.gpu_memory_bytes),
                _number(process.cpu_percent),
                _gib(process.rss_bytes),
                printable(process.user or "-"),
                printable(process.command or "-"),
            )
        )
        for device, process in on_devices
    ]
    return _table(columns, rows, width)


def _table(columns: Sequence[_Column], rows: Sequence[_Row], width: int) -> list[Text]:
    """A header and a line for each row; columns that do not fit are left out, and so are those without a figure."""
    widths = [max(len(column.header), *(len(row.cells[place]) for row in rows)) for place, column in enumerate(columns)]
    filled = [place for place in range(len(columns)) if any(row.cells[place] not in ("", "-") for row in rows)]
    shown: list[int] = []
    room = width + len(_GAP)
    for place in sorted(filled, key=lambda place: -columns[place].importance):
        if not shown:
            widths[place] = min(widths[place], width)
        elif columns[place].is_left and columns[place].importance >= 9:
            widths[place] = max(len(columns[place].header), min(widths[place], width // 3))
        room -= widths[place] + len(_GAP)
        if room < 0:
            break
        shown.append(place)
    shown.sort()

    def line(cells: Sequence[str], style: str) -> Text:
        parts = []
        for place in shown:
            cell = cells[place] if len(cells[place]) <= widths[place] else cells[place][: widths[place] - 1] + "…"
            parts.append(cell.ljust(widths[place]) if columns[place].is_left else cell.rjust(widths[place]))
        return Text(_GAP.join(parts).rstrip(), style=style)

    return [line([column.header for column in columns], "dim"), *(line(row.cells, row.style) for row in rows)]


def _cost_column(price: Price | None) -> tuple[_Column, ...]:
    return () if price is None else (_Column(f"cost {printable(price.currency)}", 8),)


def _cost_cell(cost: float | None, price: Price | None) -> tuple[str, ...]:
    return () if price is None else ("-" if cost is None else f"{cost:,.2f}",)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _gib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**30:.2f}"


def _of(used_bytes: int | None, total_bytes: int | None) -> str:
    if used_bytes is None:
        return "-"
    return f"{used_bytes / 2**30:.1f}" + ("" if total_bytes is None else f"/{total_bytes / 2**30:.1f}")


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.095 or not hours else f"{hours:.4f}"


def _seconds(seconds: float) -> str:
    return duration_text(seconds) if seconds else "0"


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%m-%d %H:%M:%S")
