"""What a check returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's outcome. WARN: it runs with less; FAIL: something asked of it will not work."""

    name: str
    status: Status
    seen: str
    advice: str | None = None  # what to do; None for OK
    place: str | None = None  # FILE:LINE, of what was found in a script
    fix: str | None = None  # what --fix would do about it; None where nothing is safe


def judged(name: str, seen: str, *, failures: list[str] | None = None, warnings: list[str] | None = None, advice: str) -> Finding:
    """FAIL where there are failures, else WARN where there are warnings, else OK; what is wrong comes first in `seen`."""
    wrong = [*(failures or []), *(warnings or [])]
    if not wrong:
        return Finding(name=name, status="OK", seen=seen)
    return Finding(name=name, status="FAIL" if failures else "WARN", seen="; ".join([*wrong, *([seen] if seen else [])]), advice=advice)
