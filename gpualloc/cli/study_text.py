"""The conclusion of a study as text."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.text import Text

from gpualloc.advice.words import interval_text, percent_text
from gpualloc.cli.tables import printable, text_table
from gpualloc.experiment.conclusion import Conclusion

_STYLES = {"pays": "green", "does not pay": "red", "too close to call": "yellow"}


def print_conclusion(conclusion: Conclusion, console: Console) -> None:
    """The answer first, then the evidence."""
    _paragraph(conclusion.question, console, style="dim")
    _paragraph(conclusion.answer, console, style="bold")
    _paragraph(f"{'Certain' if conclusion.is_certain else 'Not certain'}: {conclusion.stopped_because}.", console)
    if conclusion.precision_gain is not None:
        _paragraph(conclusion.precision_gain, console)
    if conclusion.points:
        console.print()
        right = ("size", "one, ms", "several, ms", "rounds")
        table = text_table("size", "one, ms", "several, ms", "efficiency", "rounds", "", right=right, fixed=("efficiency", ""))
        for point in conclusion.points:
            times = [f"{row.step_time_s * 1e3:.2f}" if row.step_time_s is not None else "-" for row in (point.one, point.many)]
            efficiency = interval_text(point.efficiency, percent_text)
            table.add_row(
                str(point.size), *times, efficiency, str(point.many.num_rounds), Text(point.verdict, style=_STYLES[point.verdict])
            )
        console.print(table)
    for failure in conclusion.failures:
        _paragraph(f"not measured: {failure}", console, style="red")
    console.print()
    device = "" if conclusion.environment.cuda_version else "; CPU, not comparable with a GPU"
    seconds = sum(step.seconds for step in conclusion.steps)
    steps = f"{len(conclusion.steps)} {'step' if len(conclusion.steps) == 1 else 'steps'}"
    _paragraph(
        f"{conclusion.num_cases} of {conclusion.num_possible_cases} cases run in {steps}, {seconds:.0f} s; "
        f"efficiency is taken to grow with the size; in brackets 95 % intervals from the repeats{device}",
        console,
        style="dim",
    )


def _paragraph(text: str, console: Console, *, style: str = "") -> None:
    lines = textwrap.wrap(printable(text), console.width, break_on_hyphens=False)
    console.print(Text("\n".join(lines), style=style), soft_wrap=True)
