"""The page's upper part: the answer in three sentences, large figures, and the three charts that bear it out."""

from __future__ import annotations

from dataclasses import dataclass

from gpualloc.findings import Efficiency, Threshold
from gpualloc.report.answer import Answer, FirstStep, Scaling, Setting, find_answer, workload_key
from gpualloc.report.blocks import Figure, Mood, Tile
from gpualloc.report.inputs import ReportInputs, Study
from gpualloc.report.manager_figures import cost_figure, speedup_figure, threshold_figure
from gpualloc.report.naming import noun, setting_text, size_of_axis, unpriced_unit, workload_text
from gpualloc.report.numbers import digits, duration, money, percent, ratio
from gpualloc.report.verdicts import VERDICT_MOOD
from gpualloc.report.words import Words
from gpualloc.watching.waste import Price

_SURENESS_MOOD: dict[str, Mood] = {"certain": "good", "open": "bad"}
_VERDICT_MOOD: dict[str, Mood] = {"yes": "good", "no": "bad"}


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
                speedup_figure(answer, study, words),
                threshold_figure(answer, study, words),
                cost_figure(answer, study, inputs.price, words, is_alone=bool(answer.thresholds) or not answer.scalings),
            )
            if each is not None
        ),
    )


def main_study(inputs: ReportInputs) -> Study:
    def rank(study: Study) -> tuple[bool, bool]:
        is_gpu = any(row.case.device == "cuda" for row in study.usable)
        return bool(study.efficiencies), is_gpu

    return max(inputs.studies, key=rank)


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
        "smallest": size_of_axis(threshold, threshold.smallest, words),
        "largest": size_of_axis(threshold, threshold.largest, words),
    }
    if threshold.pays_from is None:
        key = "never" if threshold.fails_at == threshold.largest else "unclear"
        return words(f"threshold.{key}", **values)
    if threshold.pays_from == threshold.smallest:
        return words("threshold.always", **values)
    about = threshold.pays_from if threshold.estimate is None else int(float(f"{threshold.estimate:.2g}"))
    return words("threshold.from", **values, about=size_of_axis(threshold, about, words))


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
    """Money for a million images or tokens; hours of GPUs, or of a CPU's ranks, where no price is known."""
    hours = setting.result_gpu_hours
    return f"{digits(hours)} {unpriced_unit(setting.case)}" if price is None else money(hours * price.amount_per_hour, price.currency)


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
