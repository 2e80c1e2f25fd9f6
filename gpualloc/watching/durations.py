"""Durations and prices as they are written on the command line."""

from __future__ import annotations

import math
import re

from gpualloc.errors import UsageError
from gpualloc.watching.waste import Price

_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")
_PRICE = re.compile(r"(?P<before>\D*?)\s*(?P<amount>[+-]?\d+(?:\.\d+)?)\s*(?P<after>.*)")
_MAX_CURRENCY_LENGTH = 12


def parse_duration_s(option: str, text: str, *, at_least_s: float = 1e-3) -> float:
    """ "1h30m" -> 5400.0; a number needs its unit."""
    compact = text.strip().replace(" ", "")
    if not compact or _PART.sub("", compact):
        raise UsageError(f"{option} {text!r} is no duration; write a number with its unit: 500ms, 5s, 10m, 24h, 7d or 1h30m")
    seconds = sum(float(amount) * _UNIT_S[unit] for amount, unit in _PART.findall(compact))
    if not at_least_s <= seconds < math.inf or seconds > 1e10:
        raise UsageError(f"{option} {text!r} is out of range; choose {duration_text(at_least_s)} or more")
    return seconds


def duration_text(seconds: float) -> str:
    """5400.0 -> "1h30m"; two units at most."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    if seconds < 600:
        minutes, whole_s = divmod(round(seconds), 60)
        return f"{minutes}m{whole_s:02}s" if whole_s else f"{minutes}m"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def parse_price(option: str, text: str) -> Price:
    """ "2.50 EUR" or "$2.50" -> Price."""
    found = _PRICE.fullmatch(text.strip())
    currency = (found["before"].strip() or found["after"].strip()) if found else ""
    if not found or (found["before"].strip() and found["after"].strip()) or any(map(str.isdigit, currency)):
        raise UsageError(f"{option} {text!r} is no price; write an amount and its currency: '2.50 EUR'")
    if not 0 < float(found["amount"]) < math.inf:
        raise UsageError(f"{option} {text!r} is out of range; choose an amount above 0")
    if not currency:
        raise UsageError(f"{option} {text!r} has no currency; write it behind the amount: '{text.strip()} EUR'")
    if len(currency) > _MAX_CURRENCY_LENGTH or not currency.isprintable():
        raise UsageError(f"{option} {text!r} has a currency of more than {_MAX_CURRENCY_LENGTH} printable characters; write '2.50 EUR'")
    return Price(amount_per_hour=float(found["amount"]), currency=currency)
