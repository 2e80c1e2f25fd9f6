"""The manager's three charts: speed-up against ideal, the threshold, cost per result."""

from __future__ import annotations

from gpualloc.findings import Efficiency
from gpualloc.report.answer import RESULT_SAMPLES, Answer, Setting, gpus_used, settings_of, workload_key
from gpualloc.report.blocks import Cell, Figure, table
from gpualloc.report.charts import Bar, BarChart, LineChart, Point, Reference, Series
from gpualloc.report.figures import FULL_PX, HALF_PX, figure
from gpualloc.report.inputs import Study
from gpualloc.report.naming import labels, noun, setting_text, size_of_axis, unpriced_unit, workload_text
from gpualloc.report.numbers import digits, duration, percent, ratio
from gpualloc.report.verdicts import reading_command, verdict_cell
from gpualloc.report.words import Words
from gpualloc.watching.waste import Price

_MAX_SERIES = 6
_MAX_COST_BARS = 8
_START_COLOUR, _GOAL_COLOUR = 7, 2


def speedup_figure(answer: Answer, study: Study, words: Words) -> Figure | None:
    scalings = answer.scalings[-_MAX_SERIES:]
    if not scalings:
        return None
    shared, names = labels([scaling.last.case for scaling in scalings], words, without=("ranks",))
    series = [
        Series(label=name, points=(Point(1.0, 1.0), *(_speedup_point(point) for point in scaling.points)))
        for name, scaling in zip(names, scalings, strict=True)
    ]
    counts = sorted({1, *(point.case.world_size for scaling in answer.scalings for point in scaling.points)})
    most = float(counts[-1])
    bar = study.min_efficiency
    case = scalings[0].last.case
    chart = LineChart(
        x_label=words(f"axis.{noun(case)}s"),
        y_label=words("axis.speedup"),
        series=tuple(series),
        references=(
            Reference(label=words("ideal"), kind="ideal", points=((1.0, 1.0), (most, most))),
            Reference(label=words("bar", bar=percent(bar)), kind="bar", points=((1.0, bar), (most, most * bar))),
        ),
        y_unit="x",
        x_ticks=tuple(map(float, counts)),
    )
    rows = [
        (
            name,
            Cell(str(point.case.world_size)),
            _speedup_text(point),
            percent(point.efficiency.value),
            verdict_cell(point.verdict, words),
        )
        for name, scaling in zip(names, scalings, strict=True)
        for point in scaling.points
    ]
    headers = [words("col.workload"), words(f"axis.{noun(case)}s"), words("col.speedup"), words("col.efficiency"), words("col.verdict")]
    return figure(
        chart,
        name="speedup",
        title=words("fig.speedup"),
        caption=words("fig.speedup.caption", shared=shared or words("several"), bar=percent(bar)),
        table=table(words("fig.speedup"), headers, rows, numbers=".nnn."),
        command=reading_command(study),
        wide_px=HALF_PX,
    )


def _speedup_point(point: Efficiency) -> Point:
    count, interval = point.case.world_size, point.efficiency
    low, high = (None if bound is None else bound * count for bound in (interval.low, interval.high))
    return Point(float(count), interval.value * count, low, high)


def _speedup_text(point: Efficiency) -> str:
    """The speed-up with its interval."""
    scaled = _speedup_point(point)
    return ratio(scaled.y) + ("" if scaled.low is None or scaled.high is None else f" [{scaled.low:.2f}, {scaled.high:.2f}]")


def threshold_figure(answer: Answer, study: Study, words: Words) -> Figure | None:
    """Efficiency over the size, for every number of GPUs, the bar and where it is crossed."""
    if not answer.thresholds:
        return None
    threshold = answer.thresholds[0]
    axis, top = threshold.axis, threshold.case
    fixed = {name: value for name, value in vars(top).items() if name not in (axis, "world_size")}
    points = [each for each in study.efficiencies if all(getattr(each.case, name) == value for name, value in fixed.items())]
    counts = sorted({each.case.world_size for each in points})
    series = []
    rows = []
    for count in counts:
        own = sorted((each for each in points if each.case.world_size == count), key=lambda each: getattr(each.case, axis))
        if len(own) < 2:
            continue
        label = words.devices(count, noun(top))
        series.append(
            Series(
                label=label,
                points=tuple(
                    Point(float(getattr(each.case, axis)), each.efficiency.value, each.efficiency.low, each.efficiency.high) for each in own
                ),
            )
        )
        rows += [(label, f"{getattr(each.case, axis):,}", _efficiency_text(each), verdict_cell(each.verdict, words)) for each in own]
    values = sorted({point.x for each in series for point in each.points})
    bar = study.min_efficiency
    mark = None
    if threshold.pays_from is not None and threshold.pays_from != threshold.smallest:
        at = threshold.estimate if threshold.estimate is not None else float(threshold.pays_from)
        mark = (
            at,
            words("mark", devices=words.devices(top.world_size, noun(top)), size=size_of_axis(threshold, int(float(f"{at:.2g}")), words)),
        )
    x_label = words(f"axis.{axis}")
    chart = LineChart(
        x_label=x_label,
        y_label=words("axis.efficiency"),
        series=tuple(series),
        references=(Reference(label=words("bar", bar=percent(bar)), kind="bar", points=((values[0], bar), (values[-1], bar))),),
        y_unit="%",
        x_ticks=tuple(values),
        mark=mark,
        y_range=(0.0, max(1.0, *(point.high or point.y for each in series for point in each.points))),
    )
    headers = [words("col.devices"), x_label, words("col.efficiency"), words("col.verdict")]
    return figure(
        chart,
        name="threshold",
        title=words("fig.threshold"),
        caption=words("fig.threshold.caption", what=f"{top.model}, {setting_text(top, words)}", bar=percent(bar)),
        table=table(words("fig.threshold"), headers, rows, numbers=".nn."),
        command=reading_command(study),
        wide_px=HALF_PX,
    )


def _efficiency_text(each: Efficiency) -> str:
    interval = each.efficiency
    bounds = "" if interval.low is None or interval.high is None else f" [{percent(interval.low, 1)}, {percent(interval.high, 1)}]"
    return percent(interval.value, 1) + bounds


def cost_figure(answer: Answer, study: Study, price: Price | None, words: Words, *, is_alone: bool) -> Figure | None:
    """What a million images or tokens cost, in the plain setting on one GPU and with the best settings.

    Args:
        is_alone: no other figure stands beside it.
    """
    if answer.start is None or answer.goal is None:
        return None
    ways = settings_of(study, workload_key(answer.goal.case))
    best_of: dict[tuple[int, str], Setting] = {}
    for way in ways:
        key = way.case.world_size, way.case.precision
        if key not in best_of or way.per_s > best_of[key].per_s:
            best_of[key] = way
    best_of[(answer.start.case.world_size, answer.start.case.precision)] = answer.start
    chosen = {way.case: way for way in (answer.start, *best_of.values(), answer.goal)}
    settings = sorted(chosen.values(), key=lambda way: (way.case.world_size, -way.result_gpu_hours))[:_MAX_COST_BARS]
    factor = 1.0 if price is None else price.amount_per_hour
    currency = unpriced_unit(answer.goal.case) if price is None else price.currency
    unit = words("unit.tokens" if answer.goal.is_tokens else "unit.images")
    bars, rows = [], []
    for way in settings:
        is_start, is_goal = way.case == answer.start.case, way.case == answer.goal.case
        label = f"{words.devices(way.case.world_size, noun(way.case))}, {setting_text(way.case, words)}"
        per_rate = way.result_gpu_hours * way.per_s * factor
        low, high = per_rate / way.high_per_s, per_rate / way.low_per_s
        cost = way.result_gpu_hours * factor
        bars.append(
            Bar(
                label=label,
                value=cost,
                text=digits(cost),
                low=low,
                high=high,
                colour=_GOAL_COLOUR if is_goal else _START_COLOUR if is_start else 0,
            )
        )
        rows.append(
            (label, digits(cost), f"{digits(low)} – {digits(high)}", duration(way.result_time_s, words), digits(gpus_used(way.case)))
        )
    chart = BarChart(
        x_label=words("axis.cost", currency=currency, unit=unit),
        bars=tuple(bars),
        colours=((_START_COLOUR, words("cost.start")), (_GOAL_COLOUR, words("cost.goal"))) if answer.start.case != answer.goal.case else (),
    )
    headers = [words("col.setting"), f"{words('col.cost')} ({currency})", words("col.range"), words("col.time"), "GPU"]
    priced = words("cost.priced", price=f"{price.amount_per_hour:g} {price.currency}") if price is not None else words("cost.unpriced")
    return figure(
        chart,
        name="cost",
        title=words("fig.cost"),
        caption=words("fig.cost.caption", workload=workload_text(answer.goal.case, words), n=f"{RESULT_SAMPLES:,}", unit=unit) + priced,
        table=table(words("fig.cost"), headers, rows, numbers=".nnnn"),
        command=reading_command(study),
        wide_px=FULL_PX if is_alone else HALF_PX,
    )
