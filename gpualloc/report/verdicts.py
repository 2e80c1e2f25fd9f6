"""How a verdict is shown, and which command says it again."""

from __future__ import annotations

from gpualloc.report.blocks import Cell, Mood
from gpualloc.report.inputs import Study
from gpualloc.report.words import Words

VERDICT_MOOD: dict[str, Mood] = {
    **dict.fromkeys(("faster", "pays", "better"), "good"),  # type: ignore[dict-item]
    **dict.fromkeys(("slower", "does not pay", "worse"), "bad"),  # type: ignore[dict-item]
    **dict.fromkeys(("no difference seen", "too close to call", "not certain"), "unsure"),  # type: ignore[dict-item]
}


def reading_command(study: Study) -> str:
    """What prints the same findings again."""
    run = study.runs[-1]
    return f"gpualloc results compare {run.name}" if run.name.isdecimal() else run.command


def verdict_cell(verdict: str, words: Words) -> Cell:
    return Cell(words.name("verdict", verdict), VERDICT_MOOD.get(verdict, ""))
