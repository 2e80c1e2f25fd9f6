"""The table of a benchmark's cases: blocks of what can be compared, a row a case, and below them what a reader must know."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from gpualloc.cli import formats
from gpualloc.cli.tables import printable
from gpualloc.records import BenchCase, Measurement

NOISY_SPREAD = 0.05  # above it a figure is marked as uncertain
_GAP = "  "
_MAX_NOTES = 6  # below a table
_MIN_REASON_WIDTH = 30  # columns: below it a reason starts on a line of its own


def print_measurements(measurements: Sequence[Measurement], console: Console, *, whole_run: Sequence[Measurement] | None = None) -> None:
    """One block per model, size, precision and batch size; its first row is the single process where there is one.

    Blocks of which nothing was tried are listed below the others, by reason, instead of a table of words each.
    Columns that do not fit the console are left out, the least important first.

    Args:
        measurements: the rows to print.
        console: where to.
        whole_run: where `measurements` is a selection, all of the run: speed-up refers to the first row of the whole block.
    """
    if not measurements:
        console.print("no cases recorded")
        return
    blocks = _blocks(measurements, whole_run or measurements)
    figures = {id(row): [column.cell(row, block.base) for column in _COLUMNS] for block in blocks for row in block.rows}
    widths = [max(len(text) for text in texts) for texts in zip((column.header for column in _COLUMNS), *figures.values(), strict=True)]
    name_width = max(len(_name(row)) for row in measurements)
    shown = _fitting(widths, console.width - name_width)
    untried = [block for block in blocks if formats.chosen() == "table" and all(row.status == "skipped" for row in block.rows)]
    blocks = [block for block in blocks if block not in untried]
    captions = {_caption(block.rows) for block in blocks or untried}
    for block in blocks:
        console.print(Text(block.title, style="bold"), soft_wrap=True)
        if formats.chosen() != "table":
            _print_plainly(block, figures, console)
            continue
        headers = [block.throughput_name if column is _THROUGHPUT else column.header for column in _COLUMNS]
        console.print(_line(" " * name_width, headers, widths, shown, style="dim"), soft_wrap=True)
        for row in block.rows:
            if row.status == "ok":
                line = _line(_name(row).ljust(name_width), figures[id(row)], widths, shown, style=_style(row))
                console.print(line, soft_wrap=True)
            else:
                _print_problem(row, name_width, widths[0], console)
        if len(captions) > 1:
            console.print(Text(_caption(block.rows), style="dim"))
        console.print()
    _print_untried([row for block in untried for row in block.rows], console)
    if len(captions) == 1:
        console.print(Text(captions.pop(), style="dim"))
    bases = [block.base for block in blocks if block.base]
    if bases:
        reference = "a single process" if all(base.case.strategy == "single" for base in bases) else "the block's first measured row"
        on_cpu = any(base.case.device == "cpu" and base.case.strategy == "single" for base in bases)
        share = ", which has as many cores as one rank" if on_cpu else ""
        console.print(Text(f"weak scaling: speed-up is throughput over that of {reference}{share}", style="dim"))
    if any(_is_noisy(row) for row in measurements):
        console.print(Text(f"~ the repeats spread over more than {NOISY_SPREAD:.0%}: not certain", style="yellow"))
    disturbance = next((reason for row in measurements for reason in row.disturbances), None)
    if disturbance is not None:
        console.print(Text(printable(f"* every repeat was disturbed, not to be compared; the first: {disturbance}"), style="red"))
    _print_notes(measurements, console)
    if any(_is_nonfinite(row) for row in measurements):
        console.print(Text("! inf or NaN in an averaged gradient (a GradScaler skips such steps) or in the loss", style="red"))


def case_label(case: BenchCase) -> str:
    """The case's short name with its batch size."""
    return f"{case.label()}, {case.per_device_batch_size} per rank"


@dataclass(frozen=True)
class _Block:
    """Cases that differ in strategy, hook and world size only."""

    title: str
    throughput_name: str
    rows: list[Measurement]
    base: Measurement | None  # the first row with figures


@dataclass(frozen=True)
class _Column:
    header: str
    importance: int  # the lowest leaves first where space is short
    cell: Callable[[Measurement, Measurement | None], str]


def _blocks(measurements: Sequence[Measurement], whole_run: Sequence[Measurement]) -> list[_Block]:
    all_rows, shown_rows = _rows_by_title(whole_run), _rows_by_title(measurements)
    return [
        _Block(
            title=title,
            throughput_name="tokens/s" if rows[0].case.workload == "llm" else "samples/s",
            rows=rows,
            base=next((row for row in all_rows[title] if row.status == "ok"), None),
        )
        for title, rows in shown_rows.items()
    ]


def _rows_by_title(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    rows_of: dict[str, list[Measurement]] = {}
    for row in sorted(measurements, key=lambda row: (row.case.strategy != "single", row.case.world_size)):
        rows_of.setdefault(_title(row), []).append(row)
    return {title: rows_of[title] for title in dict.fromkeys(map(_title, measurements))}  # blocks in the order measured


def _title(row: Measurement) -> str:
    case = row.case
    size = f"{case.image_size_px} px" if case.image_size_px is not None else f"{case.sequence_length} tokens"
    data = "" if case.data == "synthetic" else f" of {case.data}"
    cluster = f", rehearsed: {case.cluster()}" if case.cluster() is not None else ""
    return printable(f"{case.model}, {size}{data}, {case.precision}, {case.per_device_batch_size} per rank, {case.device}{cluster}")


def _name(row: Measurement) -> str:
    """Strategy and hook, and the details that are not at their default."""
    strategy = f"{row.case.strategy}/{row.case.hook}" if row.case.strategy == "ddp" else row.case.strategy
    details = (name if value is True else f"{name}={value}" for name, value in row.case.details().items())
    return printable(" ".join([strategy, *details]))


def _is_noisy(row: Measurement) -> bool:
    return (row.spread or 0) > NOISY_SPREAD


def _style(row: Measurement) -> str:
    return "red" if _is_nonfinite(row) else "yellow" if _is_noisy(row) else ""


def _is_nonfinite(row: Measurement) -> bool:
    losses = [loss for loss in (row.loss_start, row.loss_end) if loss is not None]
    return bool(row.nonfinite_steps) or not all(map(math.isfinite, losses))


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _throughput(row: Measurement) -> float | None:
    return row.samples_per_s if row.tokens_per_s is None else row.tokens_per_s


def _throughput_cell(row: Measurement, base: Measurement | None) -> str:
    throughput = _throughput(row)
    if throughput is None:
        return "-"
    return f"{throughput:,.0f}" if throughput >= 100 else f"{throughput:.2f}"


def _speedup_cell(row: Measurement, base: Measurement | None) -> str:
    throughput, base_throughput = _throughput(row), _throughput(base) if base else None
    return f"{throughput / base_throughput:.2f}x" if throughput is not None and base_throughput else "-"


def _step_cell(row: Measurement, base: Measurement | None) -> str:
    marks = ("!" if _is_nonfinite(row) else "") + ("*" if row.disturbances else "") + ("~" if _is_noisy(row) else "")
    return marks + _milliseconds(row.step_time_s)


def _spread_cell(row: Measurement, base: Measurement | None) -> str:
    return "-" if row.spread is None or len(row.repeat_step_times_s) < 2 else f"{row.spread:.1%}"


def _interval_cell(row: Measurement, base: Measurement | None) -> str:
    if row.step_time_s is None or row.step_time_ci_low_s is None or row.step_time_ci_high_s is None:
        return "-"
    return f"{(row.step_time_ci_high_s - row.step_time_ci_low_s) / 2 / row.step_time_s:.1%}"


def _scaled_cell(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.2f}"


def _loss_cell(row: Measurement, base: Measurement | None) -> str:
    return "-" if row.loss_start is None or row.loss_end is None else f"{row.loss_start:.3f}->{row.loss_end:.3f}"


_THROUGHPUT = _Column("samples/s", 7, _throughput_cell)
_COLUMNS = (
    _Column("ranks", 10, lambda row, base: str(row.case.world_size)),
    _Column("step ms", 8, _step_cell),
    _Column("spread", 6, _spread_cell),
    _Column("compute ms", 3, lambda row, base: _milliseconds(row.compute_time_s)),
    _Column("exposed ms", 5, lambda row, base: _milliseconds(row.exposed_comm_s)),
    _THROUGHPUT,
    _Column("speed-up", 9, _speedup_cell),
    _Column("peak GiB", 4, lambda row, base: _scaled_cell(row.peak_memory_bytes, 2**30)),
    _Column("wire MB", 2, lambda row, base: _scaled_cell(row.wire_bytes_per_step, 1e6)),
    _Column("loss", 1, _loss_cell),
    _Column("95% +-", 0, _interval_cell),
)


def _fitting(widths: Sequence[int], room: int) -> list[int]:
    """The columns that fit into `room` characters, the most important kept."""
    shown: list[int] = []
    for index in sorted(range(len(_COLUMNS)), key=lambda index: -_COLUMNS[index].importance):
        room -= widths[index] + len(_GAP)
        if room < 0:
            break
        shown.append(index)
    return sorted(shown)


def _print_plainly(block: _Block, figures: dict[int, list[str]], console: Console) -> None:
    """All columns, and the status with its reason in two more."""
    headers = ["", *(block.throughput_name if column is _THROUGHPUT else column.header for column in _COLUMNS), "status", "reason"]
    empty = [""] * (len(_COLUMNS) - 1)
    rows = []
    for row in block.rows:
        cells = figures[id(row)] if row.status == "ok" else [str(row.case.world_size), *empty]
        rows.append([_name(row), *cells, printable(row.status), printable(row.reason or "")])
    console.print(formats.table_text(headers, rows))


def _line(name: str, cells: Sequence[str], widths: Sequence[int], shown: Sequence[int], *, style: str) -> Text:
    line = Text(name, style=style)
    for index in shown:
        is_answer = _COLUMNS[index].header == "speed-up" and style != "dim"
        line.append(_GAP + cells[index].rjust(widths[index]), style="bold" if is_answer else "")
    return line


def _print_problem(row: Measurement, name_width: int, ranks_width: int, console: Console) -> None:
    """Status and reason take the place of the figures; a long reason goes on below its own beginning."""
    start = f"{_name(row).ljust(name_width)}{_GAP}{str(row.case.world_size).rjust(ranks_width)}{_GAP}"
    reason = f"{row.status}: {row.reason}" if row.reason else row.status
    is_narrow = console.width - len(start) < _MIN_REASON_WIDTH
    indent = 4 if is_narrow else len(start)
    lines = textwrap.wrap(printable(reason), max(console.width - indent, _MIN_REASON_WIDTH)) or [""]
    text = start + ("\n" + " " * indent if is_narrow else "") + ("\n" + " " * indent).join(lines)
    console.print(Text(text, style="dim" if row.status == "skipped" else "red"), soft_wrap=True)


def _print_untried(rows: Sequence[Measurement], console: Console) -> None:
    """The cases under the reason that they share."""
    for reason in dict.fromkeys(row.reason for row in rows):
        console.print(Text(printable(f"skipped: {reason}"), style="dim"))
        for row in rows:
            if row.reason == reason:
                console.print(Text(f"  {printable(case_label(row.case))}", style="dim"))
        console.print()


def _print_notes(rows: Sequence[Measurement], console: Console) -> None:
    """What was noted, each once with the cases it holds for."""
    cases_of: dict[str, list[str]] = {}
    for row in rows:
        adapted = [row.reason] if row.status == "ok" and row.reason else []
        for note in [*row.notes, *adapted]:
            cases_of.setdefault(note, []).append(row.case.label())
    for note, cases in list(cases_of.items())[:_MAX_NOTES]:
        whose = cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"
        console.print(Text(printable(f"{whose}: {note}"), style="dim"))
    if len(cases_of) > _MAX_NOTES:
        console.print(Text(f"{len(cases_of) - _MAX_NOTES} notes more: see them with --json", style="dim"))


def _caption(rows: Sequence[Measurement]) -> str:
    case = rows[0].case
    backends = sorted({row.backend for row in rows if row.backend})
    environment = next((row.environment for row in rows if row.environment), None)
    device = environment.device_name if environment else case.device
    shared = max(row.case.ranks_per_gpu for row in rows)
    parts = [
        f"{'/'.join(backends)} on {device}" if backends else device,
        f"{shared} ranks share a GPU" if shared > 1 else "",
        "CPU, not comparable with a GPU" if case.device == "cpu" else "",
    ]
    return printable(": ".join(part for part in parts if part))
