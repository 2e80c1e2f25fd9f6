"""What the GPUs did while jobs ran, from `gpualloc watch`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timezone

from gpualloc.report.blocks import Block, Missing, Note, Section, table
from gpualloc.report.charts import LineChart, Point, Series
from gpualloc.report.figures import figure
from gpualloc.report.inputs import ReportInputs, Watched
from gpualloc.report.numbers import ABSENT, digits, duration, gib, money, percent
from gpualloc.report.words import Words
from gpualloc.watching.samples import DeviceSample

_MAX_POINTS = 240  # of a curve: more than a screen has room for are averaged
_MAX_CURVES = 8
_MAKER = "gpualloc watch --pid PID_OF_THE_JOB, then gpualloc report --watch ~/.local/share/gpualloc/watch.sqlite"


def utilisation_section(inputs: ReportInputs, words: Words) -> Section:
    watched = inputs.watched
    blocks = (Missing(text=words("missing.watch"), command=_MAKER),) if watched is None else _blocks(watched, words)
    return Section(key="utilisation", title=words("sec.utilisation"), blocks=blocks)


def _blocks(watched: Watched, words: Words) -> tuple[Block, ...]:
    by_device: dict[tuple[str, str], list[DeviceSample]] = {}
    for sample in watched.samples:
        if sample.utilisation_percent is not None:
            by_device.setdefault((sample.host, sample.device_uuid), []).append(sample)
    blocks: list[Block] = []
    shown = [samples for samples in by_device.values() if len(samples) > 1][:_MAX_CURVES]
    if shown:
        first_s = min(samples[0].time_unix_s for samples in shown)
        last_s = max(samples[-1].time_unix_s for samples in shown)
        per_minute = last_s - first_s < 3 * 3600
        unit_s = 60.0 if per_minute else 3600.0
        series = [Series(label=_device_name(samples[0]), points=_curve(samples, first_s, unit_s)) for samples in shown]
        begin = datetime.fromtimestamp(first_s, timezone.utc).strftime("%Y-%m-%d %H:%M")
        chart = LineChart(
            x_label=words("axis.minutes" if per_minute else "axis.hours", begin=begin),
            y_label=words("axis.utilisation"),
            series=tuple(series),
            y_unit="%",
            y_range=(0.0, 1.0),
            height_px=260.0,
        )
        rows = [(each.label, digits(point.x), percent(point.y)) for each in series for point in each.points]
        title = words("fig.utilisation")
        headers = [words("col.device"), words("col.minutes" if per_minute else "col.hours"), words("axis.utilisation")]
        blocks.append(
            figure(
                chart,
                name="utilisation",
                title=title,
                caption=words("fig.utilisation.caption", n=len(by_device), span=duration(last_s - first_s, words)),
                table=table(title, headers, rows, numbers=".nn"),
                command="gpualloc watch report",
            )
        )
    blocks.append(_use_table(watched, words))
    waste = watched.waste
    cost = "" if waste.cost is None or waste.price is None else f", {money(waste.cost, waste.price.currency)}"
    values = {"wasted": digits(waste.wasted_device_hours), "seen": digits(waste.observed_device_hours), "cost": cost}
    blocks.append(Note(text=words("watch.wasted", **values)))
    blocks.append(Note(text=words("watch.caveat"), mood="muted"))
    return tuple(blocks)


def _use_table(watched: Watched, words: Words) -> Block:
    rows = [
        (
            device.device_name,
            device.host,
            ABSENT if device.mean_utilisation_percent is None else f"{device.mean_utilisation_percent:.0f}%",
            gib(device.peak_memory_used_bytes),
            ABSENT if device.mean_power_w is None else f"{device.mean_power_w:,.0f}",
            duration(device.observed_s, words) if device.observed_s else ABSENT,
            duration(device.idle_s, words) if device.idle_s else ABSENT,
            digits(device.wasted_device_hours) if device.is_judged else ABSENT,
        )
        for device in watched.waste.devices
    ]
    headers = [words(f"col.{name}") for name in ("device", "host", "mean_util", "peak_gib", "power_w", "seen", "idle", "wasted_h")]
    return table(words("tab.use"), headers, rows, numbers="..nnnnnn")


def _curve(samples: Sequence[DeviceSample], first_s: float, unit_s: float) -> tuple[Point, ...]:
    size = -(-len(samples) // _MAX_POINTS)
    groups = [samples[start : start + size] for start in range(0, len(samples), size)]
    return tuple(
        Point(
            (statistics.fmean(each.time_unix_s for each in group) - first_s) / unit_s,
            statistics.fmean(each.utilisation_percent or 0.0 for each in group) / 100,
        )
        for group in groups
    )


def _device_name(sample: DeviceSample) -> str:
    if sample.kind == "cpu":
        return f"{sample.host} (CPU)"
    return f"{sample.host} GPU {sample.device_index}" if sample.device_index is not None else f"{sample.host} {sample.device_uuid}"
