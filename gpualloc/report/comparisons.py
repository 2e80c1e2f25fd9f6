"""Every comparison: precision, strategy and hook, details, best settings, quality. A chart of the clearest, a table of all."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.findings import Gain
from gpualloc.findings.labels import gain_text
from gpualloc.quality.records import Experiment
from gpualloc.quality.verdict import GroupVerdict, judge
from gpualloc.report.answer import count_unusable
from gpualloc.report.blocks import Block, Cell, Missing, Mood, Note, Section, Table, table
from gpualloc.report.charts import Bar, BarChart, LineChart, Point, Series
from gpualloc.report.figures import figure
from gpualloc.report.inputs import ReportInputs, Study
from gpualloc.report.naming import labels, noun, setting_text, workload_text
from gpualloc.report.numbers import ABSENT, digits, gain_interval, milliseconds, percent, ratio
from gpualloc.report.verdicts import VERDICT_MOOD, reading_command, verdict_cell
from gpualloc.report.words import Words

_MAX_BARS = 20
_MAX_CURVES = 6
_COLOUR_OF_MOOD: dict[Mood, int] = {"good": 2, "bad": 1, "unsure": 7}


def comparison_sections(inputs: ReportInputs, words: Words) -> list[Section]:
    """Precision, strategies and hooks, scaling, details, best settings, quality."""
    return [
        _gains_section("precision", inputs, words),
        _gains_section("how", inputs, words),
        _scaling_section(inputs, words),
        _gains_section("details", inputs, words),
        _best_section(inputs, words),
        _quality_section(inputs.experiments, words),
    ]


def _gains(study: Study, kind: str) -> tuple[Gain, ...]:
    return {"precision": study.findings.precision_gains, "how": study.how_gains, "details": study.findings.detail_gains}[kind]


def _gains_section(kind: str, inputs: ReportInputs, words: Words) -> Section:
    blocks: list[Block] = []
    for place, study in enumerate(inputs.studies):
        gains = _gains(study, kind)
        if gains:
            blocks.append(_gains_figure(kind, place, gains, study, len(inputs.studies) > 1, words))
    return Section(key=kind, title=words(f"sec.{kind}"), blocks=tuple(blocks) or _missing(kind, words))


def _gains_figure(kind: str, place: int, gains: Sequence[Gain], study: Study, says_machine: bool, words: Words) -> Block:
    # The question is said by "changed instead of base", so a case is named by all else.
    hidden = {"precision": ("precision",), "how": ("how",), "details": ("details",)}[kind]
    shared, names = labels([gain.case for gain in gains], words, without=hidden)
    changes = [f"{gain.changed} / {gain.base}" if kind != "details" else _detail_change(gain, words) for gain in gains]
    several_changes = len(set(changes)) > 1
    several_names = len(set(names)) > 1
    full = [
        ", ".join(filter(None, [change if several_changes else "", name if several_names else ""])) or change
        for change, name in zip(changes, names, strict=True)
    ]
    # Change by change; where there are too many, those that matter most.
    shown = sorted(range(len(gains)), key=lambda index: -abs(gains[index].speedup.value - 1))[:_MAX_BARS]
    shown.sort(key=lambda index: (changes.index(changes[index]), index))
    bars = tuple(
        Bar(
            label=full[index],
            value=gains[index].speedup.value - 1,
            text=gain_text(gains[index].speedup.value),
            low=_less_one(gains[index].speedup.low),
            high=_less_one(gains[index].speedup.high),
            colour=_COLOUR_OF_MOOD[VERDICT_MOOD.get(gains[index].verdict, "unsure")],
        )
        for index in shown
    )
    moods = [VERDICT_MOOD.get(gains[index].verdict, "unsure") for index in shown]
    colours = tuple((_COLOUR_OF_MOOD[mood], words(f"mood.{mood}")) for mood in ("good", "unsure", "bad") if mood in moods)
    rows = [
        (change, name, gain_interval(gain.speedup), verdict_cell(gain.verdict, words))
        for change, name, gain in zip(changes, names, gains, strict=True)
    ]
    headers = [words("col.change"), words("col.case"), words("col.gain"), words("col.verdict")]
    title = words(f"fig.{kind}") + (f" – {study.machine}" if says_machine else "")
    caption = words(f"fig.{kind}.caption", shared=shared or words("several"))
    if len(shown) < len(gains):
        caption += words("fig.some", shown=len(shown), n=len(gains))
    return figure(
        BarChart(x_label=words("axis.gain"), bars=bars, unit="%", colours=colours),
        name=f"{kind}-{place}",
        title=title,
        caption=caption,
        table=table(title, headers, rows, numbers="..n."),
        command=reading_command(study),
    )


def _detail_change(gain: Gain, words: Words) -> str:
    return words("detail.change", what=gain.question, changed=words.name("value", gain.changed), base=words.name("value", gain.base))


def _less_one(value: float | None) -> float | None:
    return None if value is None else value - 1


def _scaling_section(inputs: ReportInputs, words: Words) -> Section:
    blocks: list[Block] = []
    for study in inputs.studies:
        if not study.efficiencies:
            continue
        shared, names = labels([each.case for each in study.efficiencies], words, without=("ranks",))
        rows = [
            (
                name,
                words.devices(each.case.world_size, noun(each.case)),
                ratio(each.efficiency.value * each.case.world_size),
                percent(each.efficiency.value, 1),
                ABSENT if each.efficiency.low is None else f"{percent(each.efficiency.low, 1)} – {percent(each.efficiency.high, 1)}",
                verdict_cell(each.verdict, words),
            )
            for name, each in zip(names, study.efficiencies, strict=True)
        ]
        headers = [words(f"col.{name}") for name in ("case", "devices", "speedup", "efficiency", "interval", "verdict")]
        caption = words("tab.scaling", machine=study.machine, shared=shared or words("several"), bar=percent(study.min_efficiency))
        blocks.append(table(caption, headers, rows, numbers="..nnn.", is_folded=len(rows) > 40))
        if study.findings.num_without_baseline:
            blocks.append(Note(text=words("scaling.no_baseline", n=study.findings.num_without_baseline), mood="muted"))
    if blocks:
        blocks.append(Note(text=words("scaling.weak"), mood="muted"))
    return Section(key="scaling", title=words("sec.scaling"), blocks=tuple(blocks) or _missing("scaling", words))


def _best_section(inputs: ReportInputs, words: Words) -> Section:
    blocks: list[Block] = []
    for study in inputs.studies:
        rows = [
            (
                workload_text(best.case, words),
                words.devices(best.case.world_size, noun(best.case)),
                setting_text(best.case, words),
                digits(best.samples_per_s, 4),
                str(len(best.ties)) if best.ties else ABSENT,
            )
            for best in study.findings.best
        ]
        if rows:
            headers = [words(f"col.{name}") for name in ("workload", "devices", "setting", "samples_per_s", "ties")]
            blocks.append(table(words("tab.best", machine=study.machine), headers, rows, numbers="...nn", is_folded=len(rows) > 40))
    excluded = count_unusable(inputs.studies)
    if excluded:
        reasons = words("list.and").join(f"{words.name('status', reason)}: {number}" for reason, number in excluded.items())
        blocks.append(Note(text=words("best.excluded", reasons=reasons), mood="muted"))
    return Section(key="best", title=words("sec.best"), blocks=tuple(blocks) or _missing("best", words))


def _quality_section(experiments: Sequence[Experiment], words: Words) -> Section:
    blocks: list[Block] = []
    for place, experiment in enumerate(experiments):
        verdicts = judge(experiment.runs)
        if not verdicts:
            continue
        blocks += _curves(place, experiment, words)
        blocks.append(_quality_table(experiment, verdicts, words))
    return Section(key="quality", title=words("sec.quality"), blocks=tuple(blocks) or _missing("quality", words))


def _quality_table(experiment: Experiment, verdicts: Sequence[GroupVerdict], words: Words) -> Table:
    rows = []
    for each in verdicts:
        is_accuracy = each.metric == "accuracy"
        gain = ABSENT
        if each.gain is not None:
            scale, unit = (100.0, " pt") if is_accuracy else (1.0, "")
            bounds = (
                "" if each.gain.low is None or each.gain.high is None else f" [{each.gain.low * scale:+.2f}, {each.gain.high * scale:+.2f}]"
            )
            gain = f"{each.gain.value * scale:+.2f}{unit}{bounds}"
        mood: Mood = "good" if each.verdict.startswith(("unchanged", "better")) else "bad" if each.verdict == "worse" else ""
        rows.append(
            (
                each.case.model,
                f"{each.case.precision}, {each.case.hook}",
                str(each.num_seeds),
                ABSENT if each.mean is None else percent(each.mean, 2) if is_accuracy else f"{each.mean:.4f}",
                gain,
                milliseconds(each.step_time_s),
                Cell(words.name("quality", each.verdict), mood),
            )
        )
    headers = [words(f"col.{name}") for name in ("model", "setting", "seeds", "held_out", "difference", "step_ms", "verdict")]
    return table(words("tab.quality", machine=experiment.environment.device_name), headers, rows, numbers="..nnnn.")


def _curves(place: int, experiment: Experiment, words: Words) -> list[Block]:
    found: list[Block] = []
    for model in dict.fromkeys(run.case.model for run in experiment.runs if run.curve):
        series: list[Series] = []
        rows: list[tuple[str, ...]] = []
        for run in experiment.runs:
            name = f"{run.case.precision}, {run.case.hook}"
            if run.case.model != model or not run.curve or any(each.label == name for each in series) or len(series) == _MAX_CURVES:
                continue
            points = tuple(Point(float(point.step), point.train_loss) for point in run.curve if point.train_loss is not None)
            if not points:
                continue
            series.append(Series(label=name, points=points))
            rows += [(name, f"{point.x:,.0f}", f"{point.y:.4f}") for point in points]
        if not series:
            continue
        title = words("fig.curves", model=model)
        found.append(
            figure(
                LineChart(x_label=words("axis.step"), y_label=words("axis.loss"), series=tuple(series), height_px=280.0),
                name=f"curves-{place}-{len(found)}",
                title=title,
                caption=words("fig.curves.caption", seed=experiment.runs[0].case.seed),
                table=table(title, [words("col.setting"), words("axis.step"), words("axis.loss")], rows, numbers=".nn"),
                command="gpualloc bench --quality",
            )
        )
    return found


_MAKERS = {
    "precision": "gpualloc bench --precision fp32,fp16,bf16",
    "how": "gpualloc bench --gpus 1..all --strategy single,ddp --hook none,gpualloc_auto",
    "scaling": "gpualloc bench --gpus 1..all --strategy single,ddp",
    "details": "gpualloc bench --pin-memory on,off --channels-last on,off",
    "best": "gpualloc bench",
    "quality": "gpualloc bench --quality --output quality.json && gpualloc report --quality quality.json",
}


def _missing(kind: str, words: Words) -> tuple[Block, ...]:
    return (Missing(text=words(f"missing.{kind}"), command=_MAKERS[kind]),)
