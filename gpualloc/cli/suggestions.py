""" "Did you mean ...?": the names nearest to one that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# The two forms in which a value is refused with what is allowed: ours, and that of a choice.
_OURS = re.compile(r"'(?P<value>[^']*)'[^;]*; choose (?:one of|from) (?P<allowed>[^;(]+)")
_CHOICE = re.compile(r"'(?P<value>[^']*)' is not (?:one of )?(?P<allowed>'[^.]+')")


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'fp16'?", or "" where nothing is near."""
    names = list(allowed)
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def with_suggestion(message: str) -> str:
    """The message of a refused value with the nearest allowed one, if it names those and makes no suggestion yet."""
    found = _OURS.search(message) or _CHOICE.search(message)
    if found is None or "did you mean" in message.lower():
        return message
    allowed = [name.strip().strip("'") for name in re.split(r",| or | and ", found["allowed"])]
    return message.rstrip(".") + did_you_mean(found["value"], filter(None, allowed))
