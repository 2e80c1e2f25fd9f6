"""A run's findings for people: the answers in words, then the tables they come from."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpualloc.cli.tables import printable, text_table
from gpualloc.findings import Efficiency, Findings, Gain
from gpualloc.findings.labels import gain_text, parts, split_parts
from gpualloc.findings.words import answers, best_setting_text
from gpualloc.records import DETAILS

if TYPE_CHECKING:
    from gpualloc.findings.ratio import Interval

_STYLES = {
    **dict.fromkeys(("faster", "pays"), "green"),
    **dict.fromkeys(("slower", "does not pay"), "red"),
    **dict.fromkeys(("no difference seen", "too close to call", "not certain"), "yellow"),
}
_ANY_WIDTH = 10_000  # columns
_MARKS = {"no difference seen": "=", "too close to call": "~", "not certain": "?"}


def print_findings(findings: Findings, console: Console) -> None:
    """Every question: its answers, or what to measure to get one, and its table."""
    said = answers(findings)
    bar = f"{findings.min_efficiency:.0%}"

    _heading("Precision: how much faster", said["precision"], "measure two: --precision fp64,fp32,fp16", console)
    _print_figures([_precision_figure(gain) for gain in findings.precision_gains], ("precision",), "gain", console)

    how_to_scale = "no threshold: several sizes or batch sizes are needed, as in --image-size 100,200,300"
    if not findings.efficiencies:
        how_to_scale = "measure a single process and several ranks: --strategy single,ddp --gpus 1,2,4"
    _heading(f"Scaling: where more ranks pay, at an efficiency of {bar} or more", said["scaling"], how_to_scale, console)
    found = sorted(findings.efficiencies, key=lambda each: each.case.image_size_px or each.case.sequence_length or 0)
    _print_figures([_efficiency_figure(each) for each in found], ("size", "batch"), "efficiency", console)

    missing = "measure with and without: pin_memory, channels_last and others, as docs/results.md says"
    _heading("Details of training: what each changes as ranks are added", said["details"], missing, console)
    gains = sorted(findings.detail_gains, key=lambda gain: (gain.question, gain.case.world_size))
    _print_figures([_detail_figure(gain) for gain in gains], ("ranks",), "gain", console)

    _heading("Best settings, by speed alone", said["best"], "one setting was measured; there is nothing to choose", console)
    if findings.best:
        _print_best(findings, console)
    _print_notes(findings, console)


def _heading(title: str, sentences: Sequence[str], otherwise: str, console: Console) -> None:
    console.print(Text(title, style="bold"))
    for sentence in sentences or [otherwise]:
        lines = textwrap.fill(printable(sentence), console.width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        console.print(Text(lines, style="" if sentences else "dim"), soft_wrap=True)
    console.print()


@dataclass(frozen=True)
class _Figure:
    """One cell of a table: row and column are made of the same words."""

    words: dict[str, str]
    cell: Text


def _precision_figure(gain: Gain) -> _Figure:
    words = {**parts(gain.case), "precision": f"{gain.changed} over {gain.base}"}
    return _Figure(words, _cell(gain.speedup, gain.verdict, gain_text))


def _detail_figure(gain: Gain) -> _Figure:
    others = replace(gain.case, **{gain.question: DETAILS[gain.question]})  # "details" are those that both cases share
    return _Figure({"detail": f"{gain.question} {gain.changed}", **parts(others)}, _cell(gain.speedup, gain.verdict, gain_text))


def _efficiency_figure(each: Efficiency) -> _Figure:
    return _Figure(parts(each.case), _cell(each.efficiency, each.verdict, lambda value: f"{value:.0%}"))


def _print_figures(figures: Sequence[_Figure], columns: Sequence[str], value: str, console: Console) -> None:
    """For each model a table with one column per value of a part of the words; where that is too wide, one line per figure.

    Args:
        columns: that part: the first of these that varies, or the last.
        value: what the figures are called.
    """
    for model in dict.fromkeys(figure.words["model"] for figure in figures):
        block = [figure for figure in figures if figure.words["model"] == model]
        varying = (name for name in columns if len({figure.words[name] for figure in block}) > 1)
        column = next(varying, columns[-1])
        shared, differing = split_parts([figure.words for figure in block], without=(column,))
        console.print(Text(printable(shared), style="dim"), soft_wrap=True)
        table = _pivot(block, differing, column)
        if console.measure(table, options=console.options.update(max_width=_ANY_WIDTH)).maximum > console.width:
            table = text_table(*differing, column, value)
            for figure in block:
                table.add_row(*(printable(figure.words[name]) for name in (*differing, column)), figure.cell)
        console.print(table)
        console.print()


def _pivot(figures: Sequence[_Figure], labels: Sequence[str], column: str) -> Table:
    columns = list(dict.fromkeys(figure.words[column] for figure in figures))
    rows: dict[tuple[str, ...], dict[str, Text]] = {}
    for figure in figures:
        rows.setdefault(tuple(figure.words[name] for name in labels), {})[figure.words[column]] = figure.cell
    table = text_table(*labels, *columns, fixed=[*labels, *columns])
    for label, cells in rows.items():
        table.add_row(*map(printable, label), *(cells.get(each, Text("-", style="dim")) for each in columns))
    return table


def _print_best(findings: Findings, console: Console) -> None:
    table = text_table("model", "size", "on", "setting", "samples/s", "ties", right=("samples/s", "ties"))
    for best in findings.best:
        words = parts(best.case)
        figures = (f"{best.samples_per_s:,.0f}", str(len(best.ties)))
        table.add_row(*map(printable, (words["model"], words["size"], words["ranks"], best_setting_text(best))), *figures)
    console.print(table)
    console.print()


def _cell(interval: Interval, verdict: str, text: Callable[[float], str]) -> Text:
    between = "" if interval.low is None or interval.high is None else f" [{text(interval.low)},\u00a0{text(interval.high)}]"
    return Text(_MARKS.get(verdict, "") + text(interval.value) + between, style=_STYLES[verdict])


def _print_notes(findings: Findings, console: Console) -> None:
    notes = [
        "in brackets 95 % intervals from the repeats; = no difference seen, ~ too close to call, ? a single repeat",
        "weak scaling: every rank has the same batch size; efficiency is throughput over that of as many single processes",
    ]
    if findings.num_without_baseline:
        notes.append(f"cases on several ranks without a single process to compare with: {findings.num_without_baseline}")
    if findings.num_diverged:
        notes.append(f"left out of the best settings for inf or NaN in the loss: {findings.num_diverged}")
    if findings.excluded:
        notes.append("left out everywhere: " + ", ".join(f"{count} {reason}" for reason, count in findings.excluded.items()))
    for note in notes:
        console.print(Text(note, style="dim"))
