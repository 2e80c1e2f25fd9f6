"""Every error gpualloc raises on purpose.

GpuallocError                exit 1: what failed, the values seen, what to do next
├── UsageError               exit 2: an option or argument that cannot be meant; names what is allowed
├── InfeasibleError          exit 3: no answer satisfies the constraints
├── NativeUnavailableError   the compiled extension is missing or was built for another torch
├── CaseFailedError          a benchmark case died; carries the first failing rank
└── StoreError               the results store cannot be read or written
"""

from __future__ import annotations


class GpuallocError(Exception):
    """Base of all errors raised on purpose; its message says what failed, what was seen and what to do."""

    exit_code = 1


class UsageError(GpuallocError):
    """An argument that cannot be meant. The message names the values that are allowed."""

    exit_code = 2


class InfeasibleError(GpuallocError):
    """No answer satisfies the constraints."""

    exit_code = 3


class NativeUnavailableError(GpuallocError):
    """The compiled extension is needed and cannot be used; the message says why and how to build it."""


class CaseFailedError(GpuallocError):
    """A benchmark case died.

    Attributes:
        rank: the rank whose failure came first, or None when no rank reported one.
        kind: "oom" when that rank ran out of memory, "timeout", or "failed".
    """

    def __init__(self, message: str, *, rank: int | None = None, kind: str = "failed") -> None:
        super().__init__(message)
        self.rank = rank
        self.kind = kind


class StoreError(GpuallocError):
    """The results store cannot be read or written; the message names the file and the remedy."""
