"""What a check returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's outcome. WARN: gpualloc runs with less; FAIL: something asked of it will not work."""

    name: str
    status: Status
    seen: str
    advice: str | None = None  # what to do; None for OK
