"""Sections on what comes after measuring: rehearsal, forecast, plan, simulation."""

from __future__ import annotations

from gpualloc.report.blocks import Block, Note, Section, table
from gpualloc.report.charts import Lane, LaneChart, LineChart, Point, Reference, Series, Span
from gpualloc.report.comparisons import missing
from gpualloc.report.figures import figure
from gpualloc.report.inputs import ReportInputs
from gpualloc.report.later_stages import PlanFile
from gpualloc.report.numbers import ABSENT, digits, duration, milliseconds, money, percent, ratio
from gpualloc.report.rehearsal_file import RehearsalFile
from gpualloc.report.words import Words

_MAX_LANES = 64  # GPUs of a plan that are drawn
_MAKERS = {
    "rehearsal": "gpualloc rehearse --gpus 1,2,4,8 --link nvlink4 --json -- train.py > rehearsal.json && gpualloc report --rehearsal rehearsal.json",
    "plan": "gpualloc plan ... --out plan.json && gpualloc report --plan plan.json",
}


def later_sections(inputs: ReportInputs, words: Words) -> list[Section]:
    return [
        Section(key="rehearsal", title=words("sec.rehearsal"), blocks=_rehearsal(inputs.rehearsal, words)),
        Section(key="plan", title=words("sec.plan"), blocks=_plan(inputs.plan, words)),
    ]


def _rehearsal(found: RehearsalFile | None, words: Words) -> tuple[Block, ...]:
    if found is None:
        return missing(words("missing.rehearsal"), _MAKERS["rehearsal"], words)
    done = [(size, size.steps) for size in found.sizes if size.steps is not None and size.speedup is not None]
    blocks: list[Block] = [
        Note(text=words("rehearsal.failed", n=size.num_gpus, reason=size.failure or ""), mood="bad") for size in found.sizes if size.steps is None
    ]
    if done:
        points = tuple(Point(float(size.num_gpus), size.speedup or 0.0) for size, _ in done)
        low, high = points[0].x, points[-1].x
        chart = LineChart(
            x_label=words("axis.gpus"),
            y_label=words("axis.speedup"),
            series=(Series(label=words("rehearsed"), points=points),),
            references=(Reference(label=words("ideal"), kind="ideal", points=((low, low), (high, high))),),
            y_unit="x",
            x_ticks=tuple(point.x for point in points),
        )
        rows = [
            (
                str(size.num_gpus),
                milliseconds(steps.step_time_s),
                f"{milliseconds(steps.step_time_low_s)} – {milliseconds(steps.step_time_high_s)}",
                milliseconds(steps.compute_time_s),
                milliseconds(steps.exposed_comm_s),
                ratio(size.speedup),
                percent(None if size.speedup is None else size.speedup / size.num_gpus),
            )
            for size, steps in done
        ]
        headers = [words(f"col.{name}") for name in ("gpus", "step_ms", "interval", "compute_ms", "exposed_ms", "speedup", "efficiency")]
        blocks.append(
            figure(
                chart,
                name="rehearsal",
                title=words("fig.rehearsal"),
                caption=words("fig.rehearsal.caption", script=found.command, device=done[0][1].device, scaling=words.name("mode", found.scaling)),
                table=table(words("fig.rehearsal"), headers, rows, numbers="nnnnnnn"),
                command=f"gpualloc rehearse ... -- {found.command}",
            )
        )
    blocks.append(Note(text=words("rehearsal.limits"), mood="muted"))
    return tuple(blocks)


def _plan(plan: PlanFile | None, words: Words) -> tuple[Block, ...]:
    if plan is None:
        return missing(words("missing.plan"), _MAKERS["plan"], words)
    names = list(dict.fromkeys([*(each.workload for each in plan.assignments), *(each.workload for each in plan.measuring)]))
    colour_of = {name: place for place, name in enumerate(names)}
    by_device: dict[tuple[str, int], list[Span]] = {(node.name, index): [] for node in plan.cluster.nodes for index in range(node.num_gpus)}
    end_s = max((each.finish_s for each in (*plan.assignments, *plan.measuring)), default=0.0)
    unit_s, unit = (3600.0, "h") if end_s > 2 * 3600 else (60.0, "min")
    for each in (*plan.assignments, *plan.measuring):
        for device in each.devices:
            span = Span(start=each.start_s / unit_s, end=each.finish_s / unit_s, label=each.workload, colour=colour_of[each.workload])
            by_device.setdefault((device.node, device.index), []).append(span)
    lanes = tuple(Lane(name=f"{node} GPU {index}", spans=tuple(spans)) for (node, index), spans in list(by_device.items())[:_MAX_LANES])
    rows = [
        (
            each.workload,
            f"{len(each.devices)} × {each.gpu_type}",
            ", ".join(filter(None, (each.precision, f"{each.strategy}/{each.hook}" if each.strategy == "ddp" else each.strategy))),
            duration(each.start_s) if each.start_s else "0",
            duration(each.finish_s),
            f"{digits(each.samples_per_s.value)} [{digits(each.samples_per_s.low)}, {digits(each.samples_per_s.high)}]",
            ABSENT if each.cost is None else money(each.cost.value, each.cost.currency),
        )
        for each in plan.assignments
    ]
    headers = [words(f"col.{name}") for name in ("workload", "gpus", "setting", "start", "finish", "samples_per_s", "cost")]
    title = words("fig.plan")
    blocks: list[Block] = []
    if lanes and names:
        lane_px = 20.0 if len(lanes) <= 16 else 10.0
        blocks.append(
            figure(
                LaneChart(x_label=words("axis.time", unit=unit), lanes=lanes, colours=tuple(names), lane_px=lane_px),
                name="plan",
                title=title,
                caption=words("fig.plan.caption", cluster=plan.cluster.name, objective=words.name("objective", plan.objective)),
                table=table(title, headers, rows, numbers="...nnnn"),
                command="gpualloc plan",
            )
        )
    blocks += [Note(text=words("plan.waiting", workload=each.workload, reason=each.reason), mood="unsure") for each in plan.waiting]
    blocks += [Note(text=words("plan.measuring", workload=each.workload, reason=each.reason), mood="muted") for each in plan.measuring]
    return tuple(blocks)
