"""What `gpualloc watch` shows while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from gpualloc.cli.columns import Column, Row, gib_text, number_text, table_lines
from gpualloc.cli.tables import printable
from gpualloc.watching.durations import duration_text
from gpualloc.watching.ledger import DeviceLedger
from gpualloc.watching.samples import DeviceSample, ProcessSample
from gpualloc.watching.waste import WasteRule

_GAP = "  "
STATE_STYLE = {"idle": "bold red", "low": "yellow"}


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
        Column("device", 10, is_left=True),
        Column("util %", 9),
        Column("memory GiB", 8),
        Column("power W", 6),
        Column("SM MHz", 4),
        Column("°C", 3),
        Column("state", 7, is_left=True),
        Column("held back by", 2, is_left=True),
        Column("name", 1, is_left=True),
    )
    rows = []
    for sample, ledger in zip(samples, ledgers, strict=True):
        state, is_flagged = state_of(ledger, sample, rule, is_host_with_gpus=has_gpus)
        since_s = ledger.idle_run_s if state == "idle" else ledger.low_run_s
        rows.append(
            Row(
                (
                    device_label(sample.kind, sample.device_index, sample.device_uuid),
                    number_text(sample.utilisation_percent),
                    _of(sample.memory_used_bytes, sample.memory_total_bytes),
                    "-" if sample.power_w is None else f"{sample.power_w:.0f}/{number_text(sample.power_limit_w)}",
                    number_text(sample.sm_clock_mhz),
                    number_text(sample.temperature_c),
                    f"{state} {duration_text(since_s)}" if state else "",
                    ", ".join(sample.throttle_reasons or ()),
                    printable(sample.device_name),
                ),
                STATE_STYLE[state] if is_flagged else "",
            )
        )
    parts: list[RenderableType] = [*table_lines(columns, rows, width)]
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
        f"util {number_text(sample.utilisation_percent)} %",
        f"memory {_of(sample.memory_used_bytes, sample.memory_total_bytes)} GiB",
    ]
    if sample.kind == "gpu":
        parts += [
            f"power {number_text(sample.power_w)} W",
            f"SM {number_text(sample.sm_clock_mhz)} MHz",
            f"{number_text(sample.temperature_c)} °C",
        ]
    if sample.throttle_reasons:
        parts.append("held back by " + ", ".join(sample.throttle_reasons))
    if sample.processes is not None:
        parts.append(f"{len(sample.processes)} process{'' if len(sample.processes) == 1 else 'es'}")
    return printable(_GAP.join(parts))


def device_label(kind: str, index: int | None, uuid: str) -> str:
    """ "GPU 0", "MIG 1a2b3c4d", "host"."""
    if kind == "gpu":
        return f"GPU {index}"
    return "host" if kind == "cpu" else printable(uuid.replace("MIG-", "MIG ")[:12])


def _process_table(on_devices: Sequence[tuple[str, ProcessSample]], width: int) -> list[Text]:
    columns = (
        Column("pid", 10),
        Column("device", 8, is_left=True),
        Column("SM %", 6),
        Column("GPU GiB", 7),
        Column("CPU %", 5),
        Column("RSS GiB", 4),
        Column("user", 3, is_left=True),
        Column("command", 9, is_left=True),
    )
    rows = [
        Row(
            (
                str(process.pid),
                device,
                number_text(process.sm_utilisation_percent),
                gib_text(process.gpu_memory_bytes),
                number_text(process.cpu_percent),
                gib_text(process.rss_bytes),
                printable(process.user or "-"),
                printable(process.command or "-"),
            )
        )
        for device, process in on_devices
    ]
    return table_lines(columns, rows, width)


def _of(used_bytes: int | None, total_bytes: int | None) -> str:
    if used_bytes is None:
        return "-"
    return f"{used_bytes / 2**30:.1f}" + ("" if total_bytes is None else f"/{total_bytes / 2**30:.1f}")
