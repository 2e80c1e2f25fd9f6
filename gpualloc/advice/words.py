"""Figures and settings in words."""

from __future__ import annotations

import math
from collections.abc import Callable

from gpualloc.advice.records import Crossing, Option
from gpualloc.findings import Interval
from gpualloc.findings.labels import UNITS, device_noun, parts
from gpualloc.records import BenchCase


def interval_text(interval: Interval | None, text: Callable[[float], str]) -> str:
    """ "81% [80%, 83%]"; without the brackets where they are not known or say nothing."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None or text(interval.low) == text(interval.high):
        return text(interval.value)
    return f"{text(interval.value)} [{text(interval.low)}, {text(interval.high)}]"


def percent_text(share: float) -> str:
    return f"{share:.0%}"


def times_text(factor: float) -> str:
    return f"{factor:.2f}x"


def rate_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hours_text(seconds: float) -> str:
    """ "5.3 h", "42 min", "9 s", "12 days"."""
    if not math.isfinite(seconds):
        return "for ever"
    for limit, unit_s, unit in ((90, 1, "s"), (5400, 60, "min"), (72 * 3600, 3600, "h"), (1e11, 86400, "days")):
        if seconds < limit:
            return f"{seconds / unit_s:.2g} {unit}" if seconds / unit_s < 9.95 else f"{seconds / unit_s:,.0f} {unit}"
    return f"{seconds / 86400 / 365:,.0f} years"


def money_text(amount: float) -> str:
    if amount >= 1000:
        return f"{amount:,.0f}"
    return f"{amount:.2f}" if amount >= 0.095 or amount == 0 else f"{amount:.2g}"


def size_text(case: BenchCase) -> str:
    return parts(case)["size"]


def how_text(case: BenchCase) -> str:
    """ "ddp/none, fp16, 64 per GPU, channels_last"."""
    words = parts(case)
    noun = device_noun(case).rstrip("s")
    return ", ".join(filter(None, [words["how"], case.precision, f"{case.per_device_batch_size} per {noun}", words["details"]]))


def gpus_text(option: Option) -> str:
    """ "4 GPUs", "16 GPUs on 2 nodes"."""
    noun = device_noun(option.case)
    return f"{option.num_gpus} {noun}" + (f" on {option.num_nodes} nodes" if option.num_nodes > 1 else "")


def crossing_text(crossing: Crossing) -> str:
    """ "4 GPUs keep 80% efficiency from 310 px [290, 340] at batch 64"."""
    case, unit = crossing.case, UNITS[crossing.axis]
    who = f"{case.world_size} {device_noun(case)}"
    bar = f"{crossing.bar:.0%} efficiency"
    at = f"at {size_text(case)}" if crossing.axis == "per_device_batch_size" else f"at batch {case.per_device_batch_size}"
    smallest, largest = f"{crossing.smallest:g}", f"{crossing.largest:g}"
    if crossing.verdict == "not up to the largest":
        if not crossing.is_possible_at_largest:
            return f"{who} do not keep {bar} up to {largest} {unit}, the largest seen, {at}"
        return f"not certain whether {who} keep {bar} up to {largest} {unit}, the largest seen, {at}"
    if crossing.verdict == "from the smallest on":
        sure = "" if crossing.is_sure_at_largest else " (too close to call)" if crossing.has_intervals else " (single repeats: not certain)"
        sure = sure if crossing.high is None else f"; certain from {_rounded(crossing.high)} on"
        return f"{who} keep {bar} from {smallest} {unit} on, the smallest seen, {at}{sure}"
    assert crossing.value is not None
    if not crossing.has_intervals:
        return f"{who} keep {bar} from about {_rounded(crossing.value)} {unit} {at} (single repeats: no interval)"
    is_tight = crossing.low is not None and crossing.high is not None and crossing.high - crossing.low < 20

    def text(value: float) -> str:
        return f"{value:.0f}" if is_tight and value >= 10 else _rounded(value)

    low = f"below {smallest}" if crossing.low is None else text(crossing.low)
    high = f"beyond {largest}" if crossing.high is None else text(crossing.high)
    return f"{who} keep {bar} from {text(crossing.value)} {unit} [{low}, {high}] {at}"


def _rounded(value: float) -> str:
    """To whole ones, from 100 on to whole tens."""
    return f"{round(value, -1):.0f}" if value >= 100 else f"{value:.0f}" if value >= 10 else f"{value:.1f}"
