"""Sections on what comes after measuring: rehearsal, forecast, plan, simulation."""

from __future__ import annotations

from collections.abc import Callable

from gpualloc.report.blocks import Block, Cell, Commands, Missing, Mood, Note, Section, table
from gpualloc.report.charts import Lane, LaneChart, LineChart, Point, Reference, Series, Span
from gpualloc.report.figures import figure
from gpualloc.report.inputs import ReportInputs
from gpualloc.report.later_stages import AdviceFile, Assignment, Bounds, ForecastFile, MeasuringSlot, PlanFile, SimulationFile
from gpualloc.report.numbers import ABSENT, digits, duration, milliseconds, money, percent, ratio
from gpualloc.report.rehearsal_file import RehearsalFile
from gpualloc.report.words import Words

_MAX_LANES = 64  # GPUs of a plan that are drawn
_MAKERS = {
    "rehearsal": "gpualloc rehearse --gpus 1,2,4,8 --link nvlink4 --json -- train.py > r.json && gpualloc report --rehearsal r.json",
    "forecast": "gpualloc forecast ... --json > forecast.json && gpualloc report --forecast forecast.json",
    "advice": "gpualloc advise ... --json > advice.json && gpualloc report --advice advice.json",
    "simulation": "gpualloc simulate ... --json > simulation.json && gpualloc report --simulation simulation.json",
    "plan": "gpualloc plan ... --out plan.json && gpualloc report --plan plan.json",
}


def later_sections(inputs: ReportInputs, words: Words) -> list[Section]:
    return [
        Section(key="rehearsal", title=words("sec.rehearsal"), blocks=_rehearsal(inputs.rehearsal, words)),
        Section(key="forecast", title=words("sec.forecast"), blocks=_forecast(inputs.forecast, words)),
        Section(key="advice", title=words("sec.advice"), blocks=_advice(inputs.advice, words)),
        Section(key="plan", title=words("sec.plan"), blocks=_plan(inputs.plan, words)),
        Section(key="simulation", title=words("sec.simulation"), blocks=_simulation(inputs.simulation, words)),
    ]


def _rehearsal(found: RehearsalFile | None, words: Words) -> tuple[Block, ...]:
    if found is None:
        return (Missing(text=words("missing.rehearsal"), command=_MAKERS["rehearsal"]),)
    done = [(size, size.steps) for size in found.sizes if size.steps is not None and size.speedup is not None]
    blocks: list[Block] = [
        Note(text=words("rehearsal.failed", n=size.num_gpus, reason=size.failure or ""), mood="bad")
        for size in found.sizes
        if size.steps is None
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
                caption=words(
                    "fig.rehearsal.caption", script=found.command, device=done[0][1].device, scaling=words.name("mode", found.scaling)
                ),
                table=table(words("fig.rehearsal"), headers, rows, numbers="nnnnnnn"),
                command=f"gpualloc rehearse ... -- {found.command}",
            )
        )
    blocks.append(Note(text=words("rehearsal.limits"), mood="muted"))
    return tuple(blocks)


def _plan(plan: PlanFile | None, words: Words) -> tuple[Block, ...]:
    if plan is None:
        return (Missing(text=words("missing.plan"), command=_MAKERS["plan"]),)
    names = list(dict.fromkeys([*(each.workload for each in plan.assignments), *(each.workload for each in plan.measuring)]))
    colour_of = {name: place for place, name in enumerate(names)}
    by_device: dict[tuple[str, int], list[Span]] = {(node.name, index): [] for node in plan.cluster.nodes for index in range(node.num_gpus)}
    end_s = max([0.0, *(each.finish_s for each in plan.assignments), *(each.finish_s for each in plan.measuring)])
    unit_s, unit = (3600.0, "h") if end_s > 2 * 3600 else (60.0, "min")
    placed: list[Assignment | MeasuringSlot] = [*plan.assignments, *plan.measuring]
    for slot in placed:
        for device in slot.devices:
            span = Span(start=slot.start_s / unit_s, end=slot.finish_s / unit_s, label=slot.workload, colour=colour_of[slot.workload])
            by_device.setdefault((device.node, device.index), []).append(span)
    lanes = tuple(Lane(name=f"{node} GPU {index}", spans=tuple(spans)) for (node, index), spans in list(by_device.items())[:_MAX_LANES])
    rows = [
        (
            each.workload,
            f"{len(each.devices)} × {each.gpu_type}",
            ", ".join(filter(None, (each.precision, f"{each.strategy}/{each.hook}" if each.strategy == "ddp" else each.strategy))),
            duration(each.start_s, words) if each.start_s else "0",
            duration(each.finish_s, words),
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


def _forecast(found: ForecastFile | None, words: Words) -> tuple[Block, ...]:
    if found is None:
        return (Missing(text=words("missing.forecast"), command=_MAKERS["forecast"]),)
    by_job: dict[str, list[Point]] = {}
    rows = []
    for each in found.forecasts:
        query = each.query
        name = query.model if query.per_device_batch_size is None else f"{query.model}, {words('batch', n=query.per_device_batch_size)}"
        if each.step_time_s is not None:
            low, high = (None if bound is None else bound * 1e3 for bound in (each.low_s, each.high_s))
            by_job.setdefault(name, []).append(Point(float(query.num_gpus), each.step_time_s * 1e3, low, high))
        bounds = ABSENT if each.low_s is None or each.high_s is None else f"{milliseconds(each.low_s)} – {milliseconds(each.high_s)}"
        rows.append(
            (name, str(query.num_gpus), milliseconds(each.step_time_s), bounds, words.name("forecast", each.kind), each.reason or "")
        )
    headers = [words(f"col.{name}") for name in ("workload", "gpus", "step_ms", "interval_90", "basis", "reason")]
    title = words("fig.forecast")
    listed = table(title, headers, rows, numbers=".nnn..")
    if not by_job:
        return (listed,)
    series = tuple(Series(label=name, points=tuple(sorted(points, key=lambda point: point.x))) for name, points in list(by_job.items())[:8])
    counts = tuple(sorted({point.x for each in series for point in each.points}))
    return (
        figure(
            LineChart(x_label=words("axis.gpus"), y_label=words("col.step_ms"), series=series, x_ticks=counts),
            name="forecast",
            title=title,
            caption=words("fig.forecast.caption"),
            table=listed,
            command="gpualloc forecast",
        ),
    )


def _advice(advice: AdviceFile | None, words: Words) -> tuple[Block, ...]:
    if advice is None:
        return (Missing(text=words("missing.advice"), command=_MAKERS["advice"]),)
    currency = "" if advice.rent is None else advice.rent.currency
    mood_of: dict[str, Mood] = {"do": "good", "measure": "unsure"}

    def option_row(place: int) -> tuple[str | Cell, ...]:
        option = advice.options[place]
        how = f"{option.case.strategy}/{option.case.hook}" if option.case.strategy == "ddp" else option.case.strategy
        return (
            Cell(words.devices(option.num_gpus, "gpu"), "good" if option.is_chosen else ""),
            f"{option.case.precision}, {how}, {words('batch', n=option.case.per_device_batch_size)}",
            words.name("source", option.source),
            _bounds(option.speedup, lambda value: f"{value:.2f}×"),
            _bounds(option.efficiency, percent),
            _bounds(option.time_s, lambda value: duration(value, words)),
            _bounds(option.cost, lambda value: money(value, currency)),
            option.note or option.why,
        )

    headers = [words(f"col.{name}") for name in ("devices", "setting", "source", "speedup", "efficiency", "time", "cost", "reason")]
    steps = [
        (
            Cell(words.name("decision", step.decision), mood_of.get(step.decision, "")),
            step.name,
            step.change,
            _bounds(step.gain, lambda value: f"{value:.2f}×"),
            step.reason,
        )
        for step in advice.steps
    ]
    step_headers = [words(f"col.{name}") for name in ("verdict", "step", "change", "speedup", "reason")]
    return (
        *(Note(text=sentence, language="en") for sentence in advice.answer),
        table(
            words("tab.options", machine=advice.device_name),
            headers,
            [option_row(place) for place in range(len(advice.options))],
            numbers="...nnnn.",
        ),
        *([table(words("tab.steps"), step_headers, steps, numbers="...n.")] if steps else []),
        *([Commands(lines=tuple((words("advice.next"), command) for command in advice.measure_next))] if advice.measure_next else []),
    )


def _bounds(bounds: Bounds | None, text: Callable[[float], str]) -> str:
    """ "1.74× [1.70×, 1.78×]"."""
    if bounds is None:
        return ABSENT
    if bounds.low is None or bounds.high is None or text(bounds.low) == text(bounds.high):
        return text(bounds.value)
    return f"{text(bounds.value)} [{text(bounds.low)}, {text(bounds.high)}]"


def _simulation(found: SimulationFile | None, words: Words) -> tuple[Block, ...]:
    if found is None:
        return (Missing(text=words("missing.simulation"), command=_MAKERS["simulation"]),)
    rows = [
        (
            each.policy,
            duration(each.mean_jct_s, words),
            ABSENT if each.p99_jct_s is None else duration(each.p99_jct_s, words),
            ABSENT if each.makespan_s is None else duration(each.makespan_s, words),
            digits(each.gpu_hours),
            percent(each.utilisation),
        )
        for each in found.policies
    ]
    headers = [words(f"col.{name}") for name in ("policy", "mean_jct", "p99_jct", "makespan", "gpu_hours", "mean_util")]
    listed = table(words("tab.policies"), headers, rows, numbers=".nnnnn")
    if not found.timeline:
        return (listed,)
    jobs = list(dict.fromkeys(span.job for span in found.timeline))
    colour_of = {job: place for place, job in enumerate(jobs)}
    nodes: dict[str, list[Span]] = {}
    for span in found.timeline:
        label = f"{span.job} ×{span.num_gpus}"
        nodes.setdefault(span.node, []).append(
            Span(start=span.start_s / 3600, end=span.finish_s / 3600, label=label, colour=colour_of[span.job])
        )
    lanes = tuple(Lane(name=node, spans=tuple(spans)) for node, spans in list(nodes.items())[:_MAX_LANES])
    title = words("fig.simulation")
    spans = [
        (span.job, span.node, str(span.num_gpus), duration(span.start_s, words) if span.start_s else "0", duration(span.finish_s, words))
        for span in found.timeline
    ]
    span_headers = [words(f"col.{name}") for name in ("workload", "host", "gpus", "start", "finish")]
    return (
        figure(
            LaneChart(x_label=words("axis.time", unit="h"), lanes=lanes, colours=tuple(jobs) if len(jobs) <= 8 else ()),
            name="simulation",
            title=title,
            caption=words("fig.simulation.caption", n=len(jobs)),
            table=table(title, span_headers, spans, numbers="..nnn"),
            command="gpualloc simulate",
        ),
        listed,
    )
