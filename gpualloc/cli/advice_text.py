"""An advice as text and as JSON: the answer first, then the table, thresholds, steps and money behind it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from gpualloc.advice.records import Advice, Crossing, Memory, Option, Step
from gpualloc.advice.words import (
    crossing_text,
    gpus_text,
    hours_text,
    interval_text,
    money_text,
    percent_text,
    rate_text,
    times_text,
)
from gpualloc.cli.columns import Column, Row, table_lines
from gpualloc.cli.other_gpus import print_other_gpus
from gpualloc.cli.tables import printable, text_table
from gpualloc.findings import Interval
from gpualloc.findings.labels import device_noun, parts
from gpualloc.money import BuyOrRent
from gpualloc.records import BenchCase

_MAX_ROWS, _MAX_CROSSINGS = 24, 8
_WHY_WIDTH = 36  # characters
_STYLES = {"do": "green", "measure": "yellow", "leave": "dim"}
_LABELS = {"do": "", "measure": "measure: ", "leave": "as it is: "}


def print_advice(advice: Advice, console: Console) -> None:
    """The whole answer; columns that do not fit are left out, the least important first."""
    for index, sentence in enumerate(advice.answer):
        _paragraph(sentence, console, style="bold" if index == 0 else "")
    console.print()
    if advice.options:
        _print_options(advice, console)
    if advice.crossings:
        _heading("From which size more GPUs pay", console)
        for crossing in _most_telling(advice):
            _paragraph(f"{_setting(crossing)}: {crossing_text(crossing)}{_sources(crossing)}", console, indent="  ")
    if advice.steps:
        _heading("Steps, in this order", console)
        for number, step in enumerate(advice.steps, start=1):
            _print_step(number, step, console)
    _print_money(advice, console)
    print_other_gpus(advice, console)
    if advice.measure_next:
        _heading("To know more", console)
        for command in advice.measure_next:
            _paragraph(command, console, indent="  ")
    console.print()
    for note in _notes(advice):
        _paragraph(note, console, style="dim")


def advice_json(advice: Advice) -> dict[str, Any]:
    """Everything, with the sentences of the thresholds."""
    data = asdict(advice)
    data["crossings"] = [{"text": crossing_text(crossing), **asdict(crossing)} for crossing in advice.crossings]
    return data


def print_memory(rows: Sequence[tuple[BenchCase, Memory]], console: Console) -> None:
    """The estimate before anything ran."""
    case = rows[0][0]
    title = f"{case.model}, {parts(case)['size']}, {case.per_device_batch_size} per GPU: memory of a GPU, estimated"
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    table = text_table("precision", "strategy", "GPUs", "GiB", "fits", right=("GPUs", "GiB"))
    for case, memory in rows:
        gpus = "any" if case.strategy == "ddp" else str(case.world_size)
        table.add_row(case.precision, case.strategy, gpus, _gib(memory.num_bytes), _fits_word(memory.fits))
    console.print(table)
    console.print(Text("not counted: CUDA's context, cuDNN's and NCCL's buffers, fragmentation", style="dim"))


def memory_json(rows: Sequence[tuple[BenchCase, Memory]]) -> dict[str, Any]:
    return {"memory": [{"case": asdict(case), **asdict(memory)} for case, memory in rows]}


def _print_options(advice: Advice, console: Console) -> None:
    noun = device_noun(advice.options[0].case).rstrip("s") + "s"
    currency = "" if advice.rent is None else f" {printable(advice.rent.currency)}"
    columns = (
        Column(noun, 20),
        Column("nodes", 2),
        Column("strategy", 19, is_left=True),
        Column("precision", 18, is_left=True),
        Column("batch", 9.2),
        Column("samples/s", 13),
        Column("speed-up", 10),
        Column("efficiency", 17),
        Column("GiB", 9.1),
        Column("fits", 8, is_left=True),
        Column("time", 15),
        Column(f"cost{currency}", 14),
        Column("+-", 12),
        Column("per epoch", 3),
        Column("per M samples", 4),
        Column("figures", 16, is_left=True),
        Column("why", 9, is_left=True),
    )
    shown = _shown(advice.options)
    is_several_nodes = any(option.num_nodes > 1 for option in shown)
    for line in table_lines(columns, [_row(option, is_several_nodes=is_several_nodes) for option in shown], console.width):
        console.print(line, soft_wrap=True)
    if len(shown) < len(advice.options):
        console.print(Text(f"{len(advice.options) - len(shown)} options more: see them with --json", style="dim"))
    limits = {option.note: option for option in reversed(shown) if option.source == "forecast" and option.note}  # of refusals, too
    for note, option in reversed(limits.items()):
        _paragraph(f"{gpus_text(option)}: {note}", console, style="yellow")


def _shown(options: Sequence[Option]) -> list[Option]:
    """Of each number of GPUs, strategy, hook and precision the chosen one, else the fastest."""
    best: dict[tuple[object, ...], Option] = {}
    for option in options:
        if option.forecast_kind == "refused":  # one row says it
            key: tuple[object, ...] = (option.num_gpus, "refused")
        else:
            key = (option.num_gpus, option.case.strategy, option.case.hook, option.case.precision, option.source == "forecast")
        if key not in best or _rank(option) > _rank(best[key]):
            best[key] = option
    kept = sorted(best.values(), key=_rank, reverse=True)[:_MAX_ROWS]
    return [option for option in options if any(option is each for each in kept)]


def _rank(option: Option) -> tuple[bool, bool, float]:
    return option.is_chosen, option.samples_per_s is not None, 0.0 if option.samples_per_s is None else option.samples_per_s.value


def _row(option: Option, *, is_several_nodes: bool) -> Row:
    case = option.case
    words = parts(case)
    is_refused = option.forecast_kind == "refused"
    is_estimate = option.memory.source == "estimated"
    cells = (
        ("*" if option.is_chosen else "") + str(option.num_gpus),
        str(option.num_nodes) if is_several_nodes else "",
        printable(f"{words['how']} {words['details']}".strip()),
        case.precision,
        str(case.per_device_batch_size),
        _figure(option.samples_per_s, rate_text),
        _figure(option.speedup, times_text),
        interval_text(option.efficiency, percent_text),
        _gib(option.memory.num_bytes) + ("~" if is_estimate else ""),
        _fits_word(option.memory.fits),
        _figure(option.time_s, hours_text),
        _figure(option.cost, money_text),
        _error(option.samples_per_s),
        _figure(option.cost_per_epoch, money_text),
        _figure(option.cost_per_million_samples, money_text),
        "refused" if is_refused else option.source,
        textwrap.shorten(printable("not enough evidence" if is_refused else option.why), _WHY_WIDTH, placeholder=" …"),
    )
    return Row(cells, "bold green" if option.is_chosen else "" if option.samples_per_s is not None else "dim")


def _figure(interval: Interval | None, text: Callable[[float], str]) -> str:
    return "-" if interval is None else text(interval.value)


def _error(interval: Interval | None) -> str:
    """The wider side of the interval, relative."""
    if interval is None or interval.low is None or interval.high is None:
        return "-"
    return f"{max(interval.high / interval.value, interval.value / interval.low) - 1:.1%}"


def _print_step(number: int, step: Step, console: Console) -> None:
    text = f"{number}. {_LABELS[step.decision]}{step.name} {step.change}: {step.reason}"
    if step.rule is not None:
        text += f"; {step.rule.text}" + (f" [{step.rule.source}]" if step.rule.source else "")
    _paragraph(text, console, indent="  ", style=_STYLES[step.decision])
    if step.command is not None:
        _paragraph(step.command, console, indent="     ", style="dim")


def _print_money(advice: Advice, console: Console) -> None:
    if advice.rent is None and advice.why_no_price is None and not advice.turns:
        return
    _heading("Money", console)
    if advice.rent is not None:
        example = "example price, put yours into a price book: " if advice.rent.is_example else ""
        amount = f"{money_text(advice.rent.amount_per_gpu_hour)} {advice.rent.currency}"
        _paragraph(f"{amount} per GPU-hour ({example}{advice.rent.described})", console, indent="  ")
    elif advice.why_no_price is not None:
        _paragraph(f"no cost: {advice.why_no_price}", console, indent="  ")
    for turn in advice.turns:
        _paragraph(turn.text, console, indent="  ")
    if advice.purchase is not None:
        _print_purchase(advice.purchase, console)


def _print_purchase(found: BuyOrRent, console: Console) -> None:
    currency = found.currency
    years = found.payback_years
    payback = "never pays back" if years is None else f"pays back in {years:,.{1 if years < 9.95 else 0}f} years"
    verdict = "Buy" if found.answer == "buy" else "Rent"
    text = (
        f"{verdict}: {found.num_gpus} GPUs for {money_text(found.purchase_price)} {currency} {payback}, a return of "
        f"{found.return_on_investment:+.0%} over {found.lifetime_years:g} years, with {found.load_gpu_hours_per_year:,.0f} GPU-hours a "
        f"year ({money_text(found.rent_cost_per_year)} {currency} a year rented, {money_text(found.own_cost_per_year)} to run your own)"
    )
    _paragraph(text, console, indent="  ", style="bold")
    if found.rented_gpu_hours_per_year > 0:
        more = f"{found.rented_gpu_hours_per_year:,.0f} GPU-hours a year are more than they can do and are rented either way"
        _paragraph(more, console, indent="    ")
    for point in found.turning_points:
        now = f"{money_text(point.now)} {point.unit} now"
        if point.turns_at is None:
            _paragraph(f"no {point.name} turns it ({now})", console, indent="    ", style="dim")
        else:
            side = f"buying pays {point.buy_when} {money_text(point.turns_at)}"
            _paragraph(f"{point.name}: {side} ({now})", console, indent="    ", style="dim")


def _most_telling(advice: Advice) -> list[Crossing]:
    """Those of the chosen setting first."""
    chosen = advice.chosen

    def distance(crossing: Crossing) -> tuple[bool, bool, int]:
        if chosen is None:
            return False, False, crossing.case.world_size
        case = crossing.case
        is_other_way = (case.strategy, case.hook) != (chosen.case.strategy, chosen.case.hook)
        return case.precision != chosen.case.precision, is_other_way, case.world_size

    return sorted(advice.crossings, key=distance)[:_MAX_CROSSINGS]


def _setting(crossing: Crossing) -> str:
    words = parts(crossing.case)
    return printable(", ".join(filter(None, (words["how"], words["precision"], words["details"]))))


def _sources(crossing: Crossing) -> str:
    return "" if crossing.sources == ("measured",) else f" ({' and '.join(crossing.sources)})"


def _notes(advice: Advice) -> list[str]:
    scaling = (
        "weak scaling: a GPU's batch stays as it is, and the global batch grows with the GPUs"
        if advice.job.scaling == "weak"
        else f"strong scaling: a global batch of {advice.job.global_batch_size:,} divided among the GPUs"
    )
    notes = [f"{advice.device_name}; {scaling}; efficiency is throughput over that of as many GPUs alone in the same setting"]
    kinds = {option.source for option in advice.options}
    intervals = "in brackets, and as +- of samples/s, time and cost: 95 % intervals from the repeats"
    if kinds - {"measured"}:
        intervals += "; of rehearsals and forecasts 90 %, their own error included"
    notes.append(f"{intervals}; * chosen; ~ estimated; time is that of the steps alone")
    if any(option.case.device == "cpu" for option in advice.options):
        notes.append("CPU, not comparable with a GPU")
    return [*notes, *advice.notes]


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def _paragraph(text: str, console: Console, *, indent: str = "", style: str = "") -> None:
    lines = textwrap.wrap(
        printable(text), console.width, initial_indent=indent, subsequent_indent=indent + ("  " if indent else ""), break_on_hyphens=False
    )
    console.print(Text("\n".join(lines), style=style), soft_wrap=True)


def _gib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**30:.1f}"


def _fits_word(fits: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[fits]
