"""The straight answer: one to three sentences that a decision can be made on."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.advice.evidence import work_key
from gpualloc.advice.job import Job
from gpualloc.advice.records import Option, RentOf, Step
from gpualloc.advice.words import gpus_text, hours_text, how_text, interval_text, money_text, percent_text, size_text, times_text
from gpualloc.findings.labels import device_noun, gain_text
from gpualloc.records import REHEARSAL, BenchCase


def straight_answer(
    options: Sequence[Option],
    steps: Sequence[Step],
    *,
    job: Job,
    start: Option | None,
    rent: RentOf | None,
    min_efficiency: float,
    measure_next: Sequence[str],
    doubts: Sequence[str],
) -> tuple[str, ...]:
    """Whether to add GPUs and in which setting; what comes first and what the job then takes; how sure that is.

    Args:
        start: the plainest single process, as an option; None: not measured.
        doubts: why the answer is not certain.
    """
    chosen = next((option for option in options if option.is_chosen), None)
    if chosen is None:
        return (f"Not enough evidence; measure next: {measure_next[0]}" if measure_next else "Not enough evidence.",)
    sentences = [
        _whether(chosen, options, min_efficiency),
        _what_follows(chosen, steps, job, start, rent),
        _how_sure(chosen, doubts, measure_next),
    ]
    return tuple(filter(None, sentences))


def _whether(chosen: Option, options: Sequence[Option], min_efficiency: float) -> str:
    what = f"{chosen.case.model} at {size_text(chosen.case)}"
    if chosen.num_gpus == 1:
        return _stay_on_one(chosen, options, what, min_efficiency)
    gain = ""
    if chosen.speedup is not None:
        efficiency = interval_text(chosen.efficiency, percent_text)
        gain = f": {interval_text(chosen.speedup, times_text)} the speed of one, {efficiency} efficiency"
    return f"Yes, train {what} on {gpus_text(chosen)} ({how_text(chosen.case)}){gain}."


def _stay_on_one(chosen: Option, options: Sequence[Option], what: str, min_efficiency: float) -> str:
    noun = device_noun(chosen.case)
    if not chosen.why.startswith("the fastest on one;"):  # a deadline or a budget decided
        return f"No, one {noun} is {chosen.why} for {what} ({how_text(chosen.case)})."
    more = [option for option in options if option.num_gpus > 1 and option.efficiency is not None]
    alike = [option for option in more if is_same_setting(option.case, chosen.case)]
    if not alike:
        where = f" in that setting; {gpus_text(more[-1])} were, as {how_text(more[-1].case)}" if more else ""
        return f"Not known whether more {noun}s pay for {what}: none were measured{where}. On one, {how_text(chosen.case)} is the fastest."
    best = max(alike, key=lambda option: option.efficiency.value if option.efficiency else 0.0)
    reach = f"{gpus_text(best)} reach {interval_text(best.efficiency, percent_text)} efficiency and {min_efficiency:.0%} was asked for"
    return f"No, more {noun}s do not pay for {what}: {reach}; stay on one ({how_text(chosen.case)})."


def is_same_setting(case: BenchCase, other: BenchCase) -> bool:
    """Whether both do the same on each GPU, however it is spread."""
    spread = ("strategy", "hook", "world_size", *REHEARSAL)
    return work_key(case, without=spread) == work_key(other, without=spread)


def _what_follows(chosen: Option, steps: Sequence[Step], job: Job, start: Option | None, rent: RentOf | None) -> str:
    first = [step for step in steps if step.decision == "do" and step.name not in ("more GPUs", "strategy")]
    words = []
    if first:
        changes = ", then ".join(
            f"{step.name} {step.change}" + ("" if step.gain is None else f" ({gain_text(step.gain.value)})") for step in first
        )
        words.append(f"First {changes}")
    if chosen.time_s is not None:
        cost = "" if chosen.cost is None or rent is None else f" and costs {interval_text(chosen.cost, money_text)} {rent.currency}"
        instead = ""
        if start is not None and start.time_s is not None and start.case != chosen.case:
            old_cost = "" if start.cost is None or rent is None else f" and {money_text(start.cost.value)} {rent.currency}"
            setting = f"one {device_noun(start.case)} as it is ({how_text(start.case)})"
            instead = f", instead of {hours_text(start.time_s.value)}{old_cost} on {setting}"
        takes = interval_text(chosen.time_s, hours_text)
        words.append(f"the job ({job.described}) takes {takes}{cost}{instead}")
    elif chosen.cost_per_million_samples is not None and rent is not None:
        words.append(f"a million samples cost {interval_text(chosen.cost_per_million_samples, money_text)} {rent.currency}")
    if not words:
        return ""
    text = "; ".join(words)
    return text[0].upper() + text[1:] + "."


def _how_sure(chosen: Option, doubts: Sequence[str], measure_next: Sequence[str]) -> str:
    if not doubts:
        return "Certain: it was measured, and its interval is on one side of the bar."
    following = f"; to be surer: {measure_next[0]}" if measure_next else ""
    return f"Not certain: {'; '.join(doubts)}{following}"
