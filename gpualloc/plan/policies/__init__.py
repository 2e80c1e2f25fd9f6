"""Policies by name. Each is a small file of its own; the first is the default."""

from __future__ import annotations

import difflib
import importlib
from typing import cast

from gpualloc.errors import UsageError
from gpualloc.plan.protocol import Policy

_PLACES = {
    "gpualloc": "completion:Completion",
    "sia": "sia:Sia",
    "pollux": "pollux:Pollux",
    "greedy": "greedy:Greedy",
    "max_min": "max_min:MaxMin",
    "las": "las:LeastAttainedService",
    "srtf": "srtf:ShortestRemainingTimeFirst",
    "fifo": "fifo:FirstInFirstOut",
}
POLICIES = tuple(_PLACES)
DEFAULT_POLICY = POLICIES[0]


def policy_named(name: str = DEFAULT_POLICY) -> Policy:
    """One of `POLICIES`, with its default settings.

    Raises:
        UsageError: there is no such policy.
    """
    if name not in _PLACES:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"policy {name!r} is unknown; choose one of {', '.join(POLICIES)}{hint}")
    module, attribute = _PLACES[name].split(":")
    return cast(Policy, getattr(importlib.import_module(f"gpualloc.plan.policies.{module}"), attribute)())
