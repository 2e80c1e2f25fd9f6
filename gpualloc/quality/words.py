"""Verdicts as sentences."""

from __future__ import annotations

from gpualloc.findings.ratio import Interval
from gpualloc.quality.verdict import GroupVerdict


def group_name(verdict: GroupVerdict) -> str:
    """ "fp16" for the precision with DDP as it is, else "fp32, gpualloc_int8"."""
    case = verdict.case
    return case.precision if case.hook == "none" else f"{case.precision}, {case.hook}"


def sentence(verdict: GroupVerdict) -> str:
    """ "fp16: 1.90x faster, accuracy unchanged within noise (97.2%, +0.1 points [-0.4, +0.5], margin 1 point)"."""
    name = group_name(verdict)
    if verdict.mean is None:
        return f"{name}: {verdict.verdict}"
    level = value_text(verdict, verdict.mean)
    if verdict.gain is None:
        return f"{name}: {verdict.verdict}, {verdict.metric} {level}"
    speed = "" if verdict.speedup is None else f"{speed_text(verdict.speedup)}, "
    if verdict.verdict.startswith(("diverged", "failed", "oom")):
        return f"{name}: {verdict.verdict}, {verdict.metric} of the others {level}"
    words = {
        "worse": f"{verdict.metric} worse",
        "better": f"{verdict.metric} better",
        "not told apart": f"no difference in {verdict.metric} seen, and {verdict.num_seeds} seeds are too few to call it unchanged",
    }.get(verdict.verdict, f"{verdict.metric} {verdict.verdict}")
    return f"{name}: {speed}{words} ({level}, {difference_text(verdict)}, margin {margin_text(verdict)})"


def speed_text(speedup: Interval) -> str:
    """ "1.90x faster", "1.20x slower", "no faster or slower as far as seen"."""
    if speedup.is_above(1):
        return f"{speedup.value:.2f}x faster"
    if speedup.is_below(1):
        return f"{1 / speedup.value:.2f}x slower"
    return "no difference in speed seen"


def value_text(verdict: GroupVerdict, value: float) -> str:
    """ "97.2%" or "1.843"."""
    return f"{value:.1%}" if verdict.metric == "accuracy" else f"{value:.3f}"


def difference_text(verdict: GroupVerdict) -> str:
    """The metric less the reference's, with its interval: "+0.1 points [-0.4, +0.5]", "+0.012 [-0.002, +0.026]"."""
    gain = verdict.gain
    if gain is None:
        return ""
    is_accuracy = verdict.metric == "accuracy"

    def text(value: float | None) -> str:
        return "?" if value is None else f"{value * 100:+.1f}" if is_accuracy else f"{-value:+.3f}"

    low, high = (gain.low, gain.high) if is_accuracy else (gain.high, gain.low)  # a gain is a loss that fell
    return f"{text(gain.value)}{' points' if is_accuracy else ''} [{text(low)}, {text(high)}]"


def margin_text(verdict: GroupVerdict) -> str:
    """ "1 point" or "0.018"."""
    return f"{verdict.margin * 100:g} point" if verdict.metric == "accuracy" else f"{verdict.margin:.3f}"
