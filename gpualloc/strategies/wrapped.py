"""What a strategy gives back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from gpualloc.comm import HookHandle


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """A model ready to train on one rank."""

    model: nn.Module  # what forward is called on; its parameters are the original ones
    no_sync: Callable[[], AbstractContextManager[None]]  # backward passes inside it stay on this rank
    handle: HookHandle | None  # counts the bytes and the non-finite steps, where the hook is gpualloc's
    wire_bytes_per_step: int  # known from the parameters; `handle` counts instead where there is one
