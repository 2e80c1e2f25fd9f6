"""How one rank's model is wrapped for training: strategy and gradient hook by name.

The names and the refusals need no torch; `wrap` loads it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gpualloc.records import BenchCase
    from gpualloc.strategies.wrapped import Wrapped as Wrapped

STRATEGIES = ("single", "ddp")
HOOKS = (
    "none",
    "torch_fp16",
    "torch_bf16",
    "gpualloc_auto",
    "gpualloc_fp32",
    "gpualloc_fp16",
    "gpualloc_bf16",
    "gpualloc_int8",
)

__all__ = ["HOOKS", "STRATEGIES", "hook_unsupported_reason", "wrap"]


def hook_unsupported_reason(hook: str, *, precision: str, device: str) -> str | None:
    """Why this hook cannot be measured at this precision on this device, or None where it can."""
    if hook == "torch_bf16" and device == "cpu":
        return "torch refuses its bf16 hook without NCCL, and gloo is what a CPU has"
    if hook.startswith("gpualloc_") and precision == "fp64":
        return "gpualloc hooks pass fp64 gradients through unchanged; measure hook none"
    return None


def wrap(case: BenchCase, model: torch.nn.Module, device: torch.device) -> Wrapped:
    """The model, already on `device`, wrapped as the case's strategy and hook ask.

    Raises:
        KeyError: the strategy or the hook is not registered (the grid refuses those before).
    """
    if case.strategy not in STRATEGIES:
        raise KeyError(case.strategy)
    wrapped: Wrapped = importlib.import_module(f"gpualloc.strategies.{case.strategy}").wrap(case, model, device)
    return wrapped
