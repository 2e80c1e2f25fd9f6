"""scipy's integer programs, less what their solver prints: HiGHS in scipy 1.17 writes a line of its own on standard output now and then."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def milp(*arguments: Any, **options: Any) -> Any:
    """As `scipy.optimize.milp`."""
    from scipy import optimize

    with _standard_output_discarded():
        return optimize.milp(*arguments, **options)


@contextmanager
def _standard_output_discarded() -> Iterator[None]:
    """Of the whole process: the solver writes through C's stdio."""
    flush_c = ctypes.CDLL(None).fflush
    flush_c(None)
    try:
        kept = os.dup(1)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        flush_c(None)
        os.dup2(kept, 1)
        os.close(kept)
