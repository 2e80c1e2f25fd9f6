"""Figures as text, the same in every language."""

from __future__ import annotations

import math

from gpualloc.findings import Interval
from gpualloc.findings.labels import gain_text
from gpualloc.report.words import Words

ABSENT = "–"


def digits(value: float | None, significant: int = 3) -> str:
    """With thousands separators and about so many significant digits: 1234.6 -> "1,235", 0.01234 -> "0.0123"."""
    if value is None or not math.isfinite(value):
        return ABSENT if value is None else str(value)
    if value == 0:
        return "0"
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 9)}f}"


def milliseconds(seconds: float | None) -> str:
    return ABSENT if seconds is None else f"{seconds * 1e3:,.2f}"


def percent(fraction: float | None, decimals: int = 0) -> str:
    return ABSENT if fraction is None else f"{fraction * 100:,.{decimals}f}%"


def ratio(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}×"


def ratio_interval(interval: Interval) -> str:
    """ "1.74× [1.70, 1.78]"."""
    return ratio(interval.value) + ("" if interval.low is None or interval.high is None else f" [{interval.low:.2f}, {interval.high:.2f}]")


def gain_interval(interval: Interval) -> str:
    """ "+54% [+52%, +56%]"."""
    if interval.low is None or interval.high is None:
        return gain_text(interval.value)
    return f"{gain_text(interval.value)} [{gain_text(interval.low)}, {gain_text(interval.high)}]"


def gib(num_bytes: float | None) -> str:
    return ABSENT if num_bytes is None else f"{num_bytes / 2**30:,.2f}"


def megabytes(num_bytes: float | None) -> str:
    return ABSENT if num_bytes is None else f"{num_bytes / 1e6:,.2f}"


def money(amount: float, currency: str) -> str:
    """ "12.34 EUR"; small amounts with three significant digits."""
    return f"{amount:,.2f} {currency}" if amount >= 1 else f"{digits(amount)} {currency}"


def duration(seconds: float, words: Words) -> str:
    """ "3.2 h", "14 min", "52 s": one unit, two digits."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= size * 1.5:
            return words(f"time.{unit}", n=digits(seconds / size, 2))
    return words("time.ms", n=digits(seconds * 1e3, 2))
