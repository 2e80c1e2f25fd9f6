"""One process, no gradient exchange: what all speed-ups are measured against."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from gpualloc.records import BenchCase
from gpualloc.strategies.wrapped import Wrapped


def wrap(case: BenchCase, model: nn.Module, device: torch.device) -> Wrapped:
    """The model itself."""
    return Wrapped(model=model.to(device), no_sync=nullcontext, wire_bytes_per_step=0)
