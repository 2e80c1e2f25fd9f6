"""What to run next, from what was run. Pure functions over measurements.

The question is whether a number of GPUs keeps an efficiency, at one size or from which of several on. Efficiency is taken to grow with the
size, as work per step does and gradients do not. So the largest size is run first (if it fails, all do), then the smallest (if it pays,
all do), then of those left between one that fails and one that pays the one where the scaling model, fitted to all measured so far, puts
the bar, or the middle: about log2 of the sizes instead of all, whatever the curve. A size that is too close to call gets further rounds in
fresh processes, once nothing else is left to tell.

Where several precisions are asked for, they are compared on one GPU first, and the fastest goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gpualloc.advice.job import Job
from gpualloc.advice.options import baseline, efficiency_of
from gpualloc.bench.grid import GridCell
from gpualloc.errors import UsageError
from gpualloc.findings import Interval
from gpualloc.findings.ratio import speed_ratio
from gpualloc.findings.rows import usable_rows
from gpualloc.records import Measurement

MAX_ROUNDS = 4  # of a case that is too close to call
_AXES = ("image_size_px", "sequence_length", "per_device_batch_size")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Do `world_size` GPUs keep `min_efficiency`, from which of the sizes on?"""

    cells: tuple[GridCell, ...]  # every case that may be run
    axis: str
    sizes: tuple[int, ...]  # ascending
    precisions: tuple[str, ...]
    world_size: int
    min_efficiency: float

    def cell(self, size: int, precision: str, *, is_single: bool) -> GridCell:
        """The one of that size and precision."""
        return next(
            cell
            for cell in self.cells
            if getattr(cell.case, self.axis) == size and cell.case.precision == precision and (cell.case.strategy == "single") == is_single
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """Cases to run together, and what they will tell."""

    why: str
    cells: tuple[GridCell, ...]
    rounds: int  # of each, those it has included


@dataclass(frozen=True, kw_only=True)
class Done:
    """Nothing more to run."""

    why: str
    is_certain: bool


Verdict = Literal["pays", "fails", "unclear"]


def make_question(cells: Sequence[GridCell], *, min_efficiency: float) -> Question:
    """The question that a grid asks: one model, one strategy beside single, one axis with several values at most.

    Raises:
        UsageError: the grid asks more than one question, or none of its cases can run.
    """
    cases = [cell.case for cell in cells]
    models = sorted({case.model for case in cases})
    ways = sorted({(case.strategy, case.hook, case.world_size) for case in cases if case.strategy != "single"})
    if len(models) != 1:
        raise UsageError(f"a study is of one model and here are {', '.join(models)}; name one with --model")
    if len(ways) != 1 or not any(case.strategy == "single" for case in cases):
        found = ", ".join(f"{strategy}/{hook} on {count}" for strategy, hook, count in ways) or "none"
        raise UsageError(
            f"a study compares one GPU with one way to use several, and here are: {found}; give one --strategy, --hook and number"
        )
    varying = [axis for axis in _AXES if len({getattr(case, axis) for case in cases}) > 1]
    if len(varying) > 1:
        raise UsageError(
            "a study looks for a threshold along one of image size, sequence length and batch size; give several values of one"
        )
    axis = varying[0] if varying else "image_size_px" if cases[0].image_size_px is not None else "sequence_length"
    if all(cell.skip_reason is not None for cell in cells):
        raise UsageError(f"none of the cases can run here: {cells[0].skip_reason}")
    precisions = tuple(dict.fromkeys(case.precision for case in cases))
    sizes = tuple(sorted({int(getattr(case, axis)) for case in cases}))
    return Question(cells=tuple(cells), axis=axis, sizes=sizes, precisions=precisions, world_size=ways[0][2], min_efficiency=min_efficiency)


def next_step(question: Question, measured: Mapping[str, Measurement]) -> Step | Done:
    """What to run next, or why nothing is left.

    Args:
        measured: case key -> what came of it, so far.
    """
    if len(question.precisions) > 1:
        probes = [question.cell(question.sizes[-1], precision, is_single=True) for precision in question.precisions]
        missing = tuple(cell for cell in probes if cell.case.key() not in measured)
        if missing:
            return Step(why=f"which precision is the fastest on one GPU: {', '.join(question.precisions)}", cells=missing, rounds=1)
    precision = fastest_precision(question, measured)
    if precision is None:
        return Done(why="no precision could be measured", is_certain=False)
    rows, verdicts = list(measured.values()), {}
    sizes = [size for size in question.sizes if not _has_failed(question, size, precision, measured)]
    if not sizes:
        return Done(why="no size could be measured", is_certain=False)
    for size in sizes:
        efficiency = efficiency_at(question, size, precision, rows)
        if efficiency is not None:
            verdicts[size] = verdict_of(efficiency, question.min_efficiency)
    for size in sizes:
        disturbed = [measured[cell.case.key()] for cell in _pair(question, size, precision) if _is_disturbed(measured.get(cell.case.key()))]
        if disturbed:
            rounds = min(row.num_rounds for row in disturbed) + 1
            return Step(why=f"{size} was disturbed, and is measured again", cells=_pair(question, size, precision), rounds=rounds)
    if sizes[-1] not in verdicts:
        return _measure(question, sizes[-1], precision, measured, "the largest size: if it fails, all smaller ones do")
    if verdicts[sizes[-1]] == "fails":
        return Done(why="even the largest size fails certainly", is_certain=True)
    if len(sizes) > 1 and sizes[0] not in verdicts:
        return _measure(question, sizes[0], precision, measured, "the smallest size: if it pays, all larger ones do")
    if verdicts[sizes[0]] == "pays":
        return Done(why="the smallest size pays certainly" if len(sizes) > 1 else "it pays certainly", is_certain=True)
    failing = max((size for size in sizes if verdicts.get(size) == "fails"), default=sizes[0])
    paying = min((size for size in sizes if verdicts.get(size) == "pays" and size > failing), default=sizes[-1])
    between = [size for size in sizes if failing < size < paying and size not in verdicts]
    if between:
        from gpualloc.experiment.threshold import most_telling  # loads scipy

        series = [_pair(question, size, precision) for size in (failing, *between, paying)]
        left = _most_inner(len(sizes)) - sum(size in verdicts for size in sizes[1:-1])
        index, is_forecast = most_telling(series, measured, min_efficiency=question.min_efficiency, most_steps=left)
        why = "where the efficiency likely passes the bar" if is_forecast else "the middle of what is left"
        return _measure(question, between[index - 1], precision, measured, f"{why} between {failing} and {paying}")
    unclear = [size for size in sizes if failing <= size <= paying and verdicts.get(size) == "unclear"]
    for size in unclear:
        rounds = min(measured[cell.case.key()].num_rounds for cell in _pair(question, size, precision))
        if rounds < MAX_ROUNDS:
            return Step(why=f"{size} is too close to call", cells=_pair(question, size, precision), rounds=rounds + 1)
    if unclear:
        return Done(why=f"{MAX_ROUNDS} rounds leave {', '.join(map(str, unclear))} too close to call", is_certain=False)
    return Done(why=f"{failing} fails certainly, {paying} pays certainly, and no size asked for is between", is_certain=True)


def most_cases(question: Question) -> int:
    """That can be needed without further rounds."""
    return len(question.precisions) - 1 + 2 * (min(len(question.sizes), 2) + _most_inner(len(question.sizes)))


def _most_inner(num_sizes: int) -> int:
    """Sizes between the smallest and the largest that are measured at most: one more than halving needs, which a forecast may cost."""
    inner = max(0, num_sizes - 2)
    return min(inner, inner.bit_length() + 1)


def fastest_precision(question: Question, measured: Mapping[str, Measurement]) -> str | None:
    """On one GPU at the largest size: the first one asked for, unless another is certainly faster; None: none has figures."""
    if len(question.precisions) == 1:
        return question.precisions[0]
    found: Measurement | None = None
    for precision in question.precisions:
        row = measured.get(question.cell(question.sizes[-1], precision, is_single=True).case.key())
        if row is None or not usable_rows([row])[0]:
            continue
        if found is None or speed_ratio([found.repeat_step_times_s], [row.repeat_step_times_s]).is_above(1):
            found = row
    return None if found is None else found.case.precision


def efficiency_at(question: Question, size: int, precision: str, rows: Sequence[Measurement]) -> Interval | None:
    """Of the GPUs at that size; None where it has no figures yet."""
    usable, _ = usable_rows(rows)
    case = question.cell(size, precision, is_single=False).case
    row = next((row for row in usable if row.case.key() == case.key()), None)
    base = None if row is None else baseline(row.case, usable, Job())
    return None if row is None or base is None else efficiency_of(row, base)


def verdict_of(efficiency: Interval, bar: float) -> Verdict:
    if efficiency.is_below(bar):
        return "fails"
    return "pays" if efficiency.low is not None and efficiency.low >= bar else "unclear"


def _measure(question: Question, size: int, precision: str, measured: Mapping[str, Measurement], why: str) -> Step:
    cells = tuple(cell for cell in _pair(question, size, precision) if cell.case.key() not in measured)
    return Step(why=f"{size}: {why}" if len(question.sizes) > 1 else "one GPU and several, side by side", cells=cells, rounds=1)


def _pair(question: Question, size: int, precision: str) -> tuple[GridCell, GridCell]:
    return question.cell(size, precision, is_single=True), question.cell(size, precision, is_single=False)


def _has_failed(question: Question, size: int, precision: str, measured: Mapping[str, Measurement]) -> bool:
    """Whether one of its cases was run, or cannot be, and has no figures."""
    for cell in _pair(question, size, precision):
        row = measured.get(cell.case.key())
        if cell.skip_reason is not None or (row is not None and not usable_rows([row])[0] and not _is_disturbed(row)):
            return True
    return False


def _is_disturbed(row: Measurement | None) -> bool:
    """Whether all that is known of it was disturbed, and it is worth another round."""
    return row is not None and row.status == "ok" and bool(row.disturbances) and row.num_rounds < MAX_ROUNDS
