"""How a model is spread over ranks for training: strategy and gradient hook by name.

The names, the refusals and who reads what need no torch; `wrap` loads it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from gpualloc.strategies.layout import (
    HYBRIDS,
    MIN_HYBRID_WORLD_SIZE,
    ONE_PROCESS,
    WHOLE_MODEL,
    data_of,
    data_ranks,
    global_batch_size,
    num_copies,
    num_processes,
    num_shards,
)
from gpualloc.strategies.limits import unsupported_reason

if TYPE_CHECKING:
    import torch

    from gpualloc.records import BenchCase
    from gpualloc.strategies.wrapped import Wrapped as Wrapped

_MODULES = {
    "single": "single",
    "data_parallel": "data_parallel",
    "ddp": "ddp",
    "ddp_full_data": "ddp",
    "fsdp": "fsdp",
    "hsdp": "fsdp",
    "tensor_parallel": "tensor_parallel",
    "pipeline": "pipeline",
    "pipeline_ddp": "pipeline",
}
STRATEGIES = tuple(_MODULES)
HOOKS = (
    "none",
    "torch_fp16",
    "torch_bf16",
    "torch_powersgd",
    "gpualloc_auto",
    "gpualloc_fp32",
    "gpualloc_fp16",
    "gpualloc_bf16",
    "gpualloc_int8",
)

__all__ = [
    "HOOKS",
    "HYBRIDS",
    "MIN_HYBRID_WORLD_SIZE",
    "ONE_PROCESS",
    "STRATEGIES",
    "WHOLE_MODEL",
    "data_of",
    "data_ranks",
    "global_batch_size",
    "num_copies",
    "num_processes",
    "num_shards",
    "unsupported_reason",
    "wrap",
]


def wrap(case: BenchCase, model: torch.nn.Module, device: torch.device) -> Wrapped:
    """This rank's part of the model, on `device`, wrapped as the case's strategy and hook ask.

    Args:
        model: the whole one, with the same weights on every rank; on the device for WHOLE_MODEL, else on the CPU and taken apart.

    Raises:
        KeyError: the strategy or the hook is not registered (the grid refuses those before).
    """
    wrapped: Wrapped = importlib.import_module(f"gpualloc.strategies.{_MODULES[case.strategy]}").wrap(case, model, device)
    return wrapped
