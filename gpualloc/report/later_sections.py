"""Sections on what comes after measuring: rehearsal, forecast, plan, simulation."""

from __future__ import annotations

from collections.abc import Callable

from gpualloc.report.blocks import Block, Cell, Commands, Missing, Mood, Note, Section, table
from gpualloc.report.charts import Lane, LaneChart, LineChart, Point, Reference, Series, Span
from gpualloc.report.figures import figure
from gpualloc.report.inputs import ReportInputs
from gpualloc.report.later_stages import (
    AdviceFile,
    Assignment,
    Bounds,
    ForecastFile,
    MeasuringSlot,
    PlanFile,
    SimulatedFigure,
    SimulatedTimeline,
    SimulationFile,
    StepForecast,
    TimelineFile,
)
from gpualloc.report.numbers import ABSENT, digits, duration, milliseconds, money, percent, ratio
from gpualloc.report.rehearsal_file import RehearsalFile
from gpualloc.report.words import Words

_MAX_TIMELINES = 4  # policies
_SIMULATED = ("mean_jct_h", "p99_jct_h", "makespan_h", "gpu_hours", "mean_restarts", "utilisation", "worst_fairness")
_MAX_LANES = 64  # GPUs of a plan that are drawn
_MAKERS = {
    "rehearsal": "gpualloc rehearse --gpus 1,2,4,8 --link nvlink4 --json -- train.py > r.json && gpualloc report --rehearsal r.json",
    "forecast": "gpualloc forecast predict ... --json > forecast.json && gpualloc report --forecast forecast.json",
    "advice": "gpualloc advise ... --json > advice.json && gpualloc report --advice advice.json",
    "simulation": "gpualloc simulate --json --timeline t.json > s.json && gpualloc report --simulation s.json --timeline t.json",
    "plan": "gpualloc plan ... --out plan.json && gpualloc report --plan plan.json",
}


def later_sections(inputs: ReportInputs, words: Words) -> list[Section]:
    return [
        Section(key="rehearsal", title=words("sec.rehearsal"), blocks=_rehearsal(inputs.rehearsal, words)),
        Section(key="forecast", title=words("sec.forecast"), blocks=_forecast(inputs.forecast, words)),
        Section(key="advice", title=words("sec.advice"), blocks=_advice(inputs.advice, words)),
        Section(key="plan", title=words("sec.plan"), blocks=_plan(inputs.plan, words)),
        Section(key="simulation", title=words("sec.simulation"), blocks=_simulation(inputs.simulation, inputs.timeline, words)),
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
    unit_s, unit = (3600.0, "h") if end_s > 2 * 3600 else (60.0, "min") if end_s > 2 * 60 else (1.0, "s")
    placed: list[Assignment | MeasuringSlot] = [*plan.assignments, *plan.measuring]
    for slot in placed:
        for device in slot.devices:
            span = Span(start=slot.start_s / unit_s, end=slot.finish_s / unit_s, label=slot.workload, colour=colour_of[slot.workload])
            by_device.setdefault((device.node, device.index), []).append(span)
    kinds = {node.name: "cpu" if node.gpu_type == "cpu" else "GPU" for node in plan.cluster.nodes}
    lanes = tuple(
        Lane(name=f"{node} {kinds.get(node, 'GPU')} {index}", spans=tuple(spans))
        for (node, index), spans in list(by_device.items())[:_MAX_LANES]
    )
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
    for each in found.root:
        name = _forecast_name(each, words)
        if each.step_time_s is not None:
            low, high = (None if bound is None else bound * 1e3 for bound in (each.low_s, each.high_s))
            by_job.setdefault(name, []).append(Point(float(each.num_gpus), each.step_time_s * 1e3, low, high))
        bounds = ABSENT if each.low_s is None or each.high_s is None else f"{milliseconds(each.low_s)} – {milliseconds(each.high_s)}"
        rows.append(
            (name, str(each.num_gpus), milliseconds(each.step_time_s), bounds, words.name("forecast", each.kind), each.reason or "")
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


def _forecast_name(each: StepForecast, words: Words) -> str:
    """All that is known of the job but the number of GPUs."""
    parts = (
        each.model,
        None if each.image_size_px is None else words("size.px", n=each.image_size_px),
        None if each.sequence_length is None else words("size.tokens", n=each.sequence_length),
        each.precision,
        None if each.per_device_batch_size is None else words("batch", n=each.per_device_batch_size),
    )
    return ", ".join(part for part in parts if part is not None)


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
            is_folded=len(advice.options) > 10,
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


def _simulation(found: SimulationFile | None, timeline: TimelineFile | None, words: Words) -> tuple[Block, ...]:
    if found is None and timeline is None:
        return (Missing(text=words("missing.simulation"), command=_MAKERS["simulation"]),)
    blocks: list[Block] = []
    if timeline is not None:
        blocks += [_gantt(place, each, words) for place, each in enumerate(timeline.root[:_MAX_TIMELINES]) if each.spans]
    if found is not None:
        rows = [(each.policy, *(_figure_text(each.figures.get(name)) for name in _SIMULATED)) for each in found.policies]
        headers = [words("col.policy"), *(words(f"col.{name}") for name in _SIMULATED)]
        blocks.append(table(words("tab.policies", source=found.step_times), headers, rows, numbers="." + "n" * len(_SIMULATED)))
    return tuple(blocks)


def _figure_text(figure: SimulatedFigure | None) -> str:
    if figure is None:
        return ABSENT
    if figure.low is None or figure.high is None:
        return digits(figure.mean)
    return f"{digits(figure.mean)} [{digits(figure.low, 2)}, {digits(figure.high, 2)}]"


def _gantt(place: int, timeline: SimulatedTimeline, words: Words) -> Block:
    jobs = list(dict.fromkeys(span.job_id for span in timeline.spans))
    colour_of = {job: index for index, job in enumerate(jobs)}
    begin_s = min(span.start_s for span in timeline.spans)
    by_node: dict[str, list[Span]] = {}
    for span in sorted(timeline.spans, key=lambda span: span.start_s):
        for node, num_gpus in span.gpus_by_node.items():
            start, end = (span.start_s - begin_s) / 3600, (span.end_s - begin_s) / 3600
            label = f"{span.job_id} ×{num_gpus}"
            by_node.setdefault(node, []).append(Span(start=start, end=end, label=label, colour=colour_of[span.job_id]))
    lanes = [lane for node in sorted(by_node) for lane in _rows_of(node, by_node[node])]
    title = words("fig.simulation", policy=timeline.policy)
    rows = [
        (
            span.job_id,
            ", ".join(f"{node} ×{count}" for node, count in span.gpus_by_node.items()),
            f"{(span.start_s - begin_s) / 3600:,.2f}",
            f"{(span.end_s - begin_s) / 3600:,.2f}",
        )
        for span in timeline.spans
    ]
    headers = [words("col.workload"), words("col.gpus"), f"{words('col.start')}, h", f"{words('col.finish')}, h"]
    shown = tuple(lanes[:_MAX_LANES])
    return figure(
        LaneChart(x_label=words("axis.simulated"), lanes=shown, colours=(), lane_px=20.0 if len(shown) <= 16 else 12.0),
        name=f"simulation-{place}",
        title=title,
        caption=words("fig.simulation.caption", n=len(jobs), shown=len(shown), lanes=len(lanes)),
        table=table(title, headers, rows, numbers="..nn"),
        command="gpualloc simulate",
    )


def _rows_of(node: str, spans: list[Span]) -> list[Lane]:
    """As many lanes as jobs share the node at a time; spans come in the order of their start."""
    rows: list[list[Span]] = []
    for span in spans:
        free = next((row for row in rows if row[-1].end <= span.start), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return [Lane(name=node if index == 0 else "", spans=tuple(row)) for index, row in enumerate(rows)]
