"""The page's upper part: the answer in three sentences, large figures, and the three charts that bear it out."""

from __future__ import annotations

from dataclasses import dataclass

from gpualloc.findings import Efficiency, Threshold
from gpualloc.report.answer import RESULT_SAMPLES, Answer, FirstStep, Scaling, Setting, find_answer, gpus_used, settings_of, workload_key
from gpualloc.report.blocks import Cell, Figure, Mood, Tile, table
from gpualloc.report.charts import Bar, BarChart, LineChart, Point, Reference, Series
from gpualloc.report.figures import FULL_PX, HALF_PX, figure
from gpualloc.report.inputs import ReportInputs, Study
from gpualloc.report.naming import labels, noun, setting_text, workload_text
from gpualloc.report.numbers import digits, duration, money, percent, ratio
from gpualloc.report.words import Words
from gpualloc.watching.waste import Price

_MAX_SERIES = 6
_MAX_COST_BARS = 8
_START_COLOUR, _GOAL_COLOUR = 7, 2
_SURENESS_MOOD: dict[str, Mood] = {"certain": "good", "open": "bad"}
_VERDICT_MOOD: dict[str, Mood] = {"yes": "good", "no": "bad"}
VERDICT_MOOD: dict[str, Mood] = {
    **dict.fromkeys(("faster", "pays", "better"), "good"),  # type: ignore[dict-item]
    **dict.fromkeys(("slower", "does not pay", "worse"), "bad"),  # type: ignore[dict-item]
    **dict.fromkeys(("no difference seen", "too close to call", "not certain"), "unsure"),  # type: ignore[dict-item]
}


@dataclass(frozen=True, kw_only=True)
class ManagerPart:
    headline: str
    mood: Mood
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    figures: tuple[Figure, ...]


def manager_part(inputs: ReportInputs, words: Words) -> ManagerPart:
    """From the machine that says most: one measured on several GPUs before others, GPUs before CPUs."""
    study = main_study(inputs)
    answer = find_answer(study)
    is_qualified = answer.sureness in (
        "slices",
        "cpu",
        "modelled",
    )  # of what was not measured on whole GPUs nothing is said as if it had been
    return ManagerPart(
        headline=words(f"answer.{answer.sureness}.{answer.verdict}") if is_qualified else words(f"answer.{answer.verdict}"),
        mood="unsure" if is_qualified else _VERDICT_MOOD.get(answer.verdict, "unsure"),
        sentences=tuple(
            filter(None, (_add_gpus(answer, study, words), _first_step(answer, inputs, words), _costs(answer, inputs.price, words)))
        ),
        tiles=_tiles(answer, inputs.price, words),
        figures=tuple(
            each
            for each in (
                _speedup_figure(answer, study, words),
                _threshold_figure(answer, study, words),
                _cost_figure(answer, study, inputs.price, words, is_alone=bool(answer.thresholds) or not answer.scalings),
            )
            if each is not None
        ),
    )


def main_study(inputs: ReportInputs) -> Study:
    def rank(study: Study) -> tuple[bool, bool]:
        is_gpu = any(row.case.device == "cuda" for row in study.usable)
        return bool(study.efficiencies), is_gpu

    return max(inputs.studies, key=rank)


def reading_command(study: Study) -> str:
    """What prints the same findings again."""
    run = study.runs[-1]
    return f"gpualloc results compare {run.name}" if run.name.isdecimal() else run.command


def _add_gpus(answer: Answer, study: Study, words: Words) -> str:
    if not answer.scalings:
        if not study.measurements:
            return words("answer.nothing")
        num_lost = len(study.measurements) - len(study.usable)
        if any(row.case.world_size > 1 for row in study.measurements) and num_lost:
            return words("answer.lost", n=len(study.measurements), lost=num_lost)
        return words("answer.no_baseline" if any(row.case.world_size > 1 for row in study.usable) else "answer.unknown.sentence")
    clauses = []
    told = set()
    for threshold in answer.thresholds:
        clauses.append(_threshold_clause(threshold, words))
        told.add(threshold.case.model)
    clauses += [_scaling_clause(scaling, words) for scaling in answer.scalings if scaling.last.case.model not in told]
    more = len(clauses) - 3
    text = words("list.clause").join(clauses[:3])
    if more > 0:
        text += words("answer.more", n=more)
    return words("answer.sentence", clauses=text, bar=percent(study.min_efficiency))


def _threshold_clause(threshold: Threshold, words: Words) -> str:
    case = threshold.case
    values = {
        "model": case.model,
        "devices": words.devices(case.world_size, noun(case)),
        "smallest": _size(threshold, threshold.smallest, words),
        "largest": _size(threshold, threshold.largest, words),
    }
    if threshold.pays_from is None:
        key = "never" if threshold.fails_at == threshold.largest else "unclear"
        return words(f"threshold.{key}", **values)
    if threshold.pays_from == threshold.smallest:
        return words("threshold.always", **values)
    about = threshold.pays_from if threshold.estimate is None else int(float(f"{threshold.estimate:.2g}"))
    return words("threshold.from", **values, about=_size(threshold, about, words))


def _size(threshold: Threshold, value: int, words: Words) -> str:
    return words("size.px" if threshold.axis == "image_size_px" else "size.tokens", n=value)


def _scaling_clause(scaling: Scaling, words: Words) -> str:
    point = scaling.pays_on or scaling.last
    return words(
        f"scaling.{_verdict_key(point)}",
        workload=workload_text(point.case, words),
        devices=words.devices(point.case.world_size, noun(point.case)),
        speedup=ratio(point.efficiency.value * point.case.world_size),
        efficiency=percent(point.efficiency.value),
    )


def _verdict_key(point: Efficiency) -> str:
    return {"pays": "pays", "does not pay": "fails"}.get(point.verdict, "unsure")


def _first_step(answer: Answer, inputs: ReportInputs, words: Words) -> str:
    step = answer.first_step
    if step is None:
        return words("step.none") if answer.start is not None else ""
    sentence = words(
        "step.sentence",
        change=change_text(step.question, step.base, step.changed, words),
        gain=_gain_range(step, words),
        count=words("step.all" if step.num_faster == step.num_comparisons else "step.some", faster=step.num_faster, n=step.num_comparisons),
        where=words("step.on_several") if step.question == "hook" else words("step.same_hardware"),
    )
    if step.question != "precision":
        return sentence
    return sentence + words("step.quality_known" if _is_trained(step.changed, inputs) else "step.quality_unknown")


def _is_trained(precision: str, inputs: ReportInputs) -> bool:
    """Whether accuracy or loss was measured in that precision."""
    return any(run.case.precision == precision and run.curve for experiment in inputs.experiments for run in experiment.runs)


def change_text(question: str, base: str, changed: str, words: Words) -> str:
    """ "precision fp16 instead of fp32"."""
    return words("change", what=words.name("question", question), base=_value(base, words), changed=_value(changed, words))


def _value(value: str, words: Words) -> str:
    return words.name("value", value)


def _gain_range(step: FirstStep, words: Words) -> str:
    low, high = round((step.low - 1) * 100), round((step.high - 1) * 100)
    if low < 0:
        return words("step.up_to", high=f"{high}%")
    return f"{low}%" if low == high else f"{low}–{high}%"


def _costs(answer: Answer, price: Price | None, words: Words) -> str:
    start, goal = answer.start, answer.goal
    if start is None or goal is None:
        return ""
    values = {
        "workload": workload_text(goal.case, words),
        "unit": words("unit.tokens" if goal.is_tokens else "unit.images"),
        "time": duration(goal.result_time_s, words),
        "cost": cost_text(goal, price),
        "goal": f"{words.devices(goal.case.world_size, noun(goal.case))}, {setting_text(goal.case, words)}",
    }
    sure = words(f"sure.{answer.sureness}.sentence", spread=percent(answer.spread))
    if start.case == goal.case:
        return words("cost.same", **values) + sure
    before = {
        "time_before": duration(start.result_time_s, words),
        "cost_before": cost_text(start, price),
        "start": f"{words.devices(start.case.world_size, noun(start.case))}, {setting_text(start.case, words)}",
        "time_change": _change(goal.result_time_s / start.result_time_s, words, "time"),
        "cost_change": _change(goal.result_gpu_hours / start.result_gpu_hours, words, "cost"),
    }
    return words("cost.change", **values, **before) + sure


def _change(ratio_to_before: float, words: Words, what: str) -> str:
    """ "45% less time"."""
    change = round((ratio_to_before - 1) * 100)
    return words(f"change.{what}.{'less' if change <= 0 else 'more'}", n=f"{abs(change)}%")


def cost_text(setting: Setting, price: Price | None) -> str:
    """Money for a million images or tokens; GPU-hours where no price is known."""
    hours = setting.result_gpu_hours
    return f"{digits(hours)} GPU-h" if price is None else money(hours * price.amount_per_hour, price.currency)


def _tiles(answer: Answer, price: Price | None, words: Words) -> tuple[Tile, ...]:
    tiles = []
    points = [scaling.pays_on or scaling.last for scaling in answer.scalings]
    if points:
        headline = answer.goal.case if answer.goal is not None else points[-1].case
        point = next((each for each in points if workload_key(each.case) == workload_key(headline)), points[-1])
        count = point.case.world_size
        interval = point.efficiency
        tiles.append(
            Tile(
                label=words("tile.speedup", devices=words.devices(count, noun(point.case))),
                value=ratio(interval.value * count),
                detail=words("tile.speedup.detail", workload=workload_text(point.case, words), efficiency=percent(interval.value)),
                mood=VERDICT_MOOD.get(point.verdict, ""),
            )
        )
    step = answer.first_step
    if step is not None:
        tiles.append(
            Tile(
                label=words("tile.step"),
                value=_gain_range(step, words),
                detail=change_text(step.question, step.base, step.changed, words),
                mood="good",
            )
        )
    if answer.start is not None and answer.goal is not None:
        unit = words("unit.tokens" if answer.goal.is_tokens else "unit.images")
        same = answer.start.case == answer.goal.case
        detail = "" if same else words("tile.cost.detail", cost=cost_text(answer.start, price))
        tiles.append(Tile(label=words("tile.cost", unit=unit), value=cost_text(answer.goal, price), detail=detail))
    sureness = answer.sureness
    tiles.append(
        Tile(
            label=words("tile.sure"),
            value=words(f"sure.{sureness}"),
            detail=words(f"sure.{sureness}.detail", spread=percent(answer.spread)),
            mood=_SURENESS_MOOD.get(sureness, "unsure"),
        )
    )
    return tuple(tiles)


def _speedup_figure(answer: Answer, study: Study, words: Words) -> Figure | None:
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
            ratio_interval_of(point),
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


def ratio_interval_of(point: Efficiency) -> str:
    """The speed-up with its interval."""
    scaled = _speedup_point(point)
    return ratio(scaled.y) + ("" if scaled.low is None or scaled.high is None else f" [{scaled.low:.2f}, {scaled.high:.2f}]")


def verdict_cell(verdict: str, words: Words) -> Cell:
    return Cell(words.name("verdict", verdict), VERDICT_MOOD.get(verdict, ""))


def _threshold_figure(answer: Answer, study: Study, words: Words) -> Figure | None:
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
        mark = (at, words("mark", devices=words.devices(top.world_size, noun(top)), size=_size(threshold, int(float(f"{at:.2g}")), words)))
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


def _cost_figure(answer: Answer, study: Study, price: Price | None, words: Words, *, is_alone: bool) -> Figure | None:
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
    currency = "GPU-h" if price is None else price.currency
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
