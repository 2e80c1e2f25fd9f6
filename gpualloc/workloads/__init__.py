"""What is trained: name -> model, optimiser, loss and batches.

The registry and the checks need no torch, so the command line can refuse a bad argument before any process starts;
names that need torch load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpualloc.workloads.data import DataInfo, check_data, describe_data
from gpualloc.workloads.memory import device_memory_reason, estimate_memory_bytes, fitting_batch_size
from gpualloc.workloads.models import DEFAULT_SEQUENCE_LENGTH, MODELS, GptConfig, LlamaConfig, ModelSpec, VitConfig, find_model
from gpualloc.workloads.support import OPTIMIZERS, TUNINGS, unsupported_reason

if TYPE_CHECKING:
    from gpualloc.workloads.batches import count_prefetched_batches as count_prefetched_batches
    from gpualloc.workloads.batches import open_batches as open_batches
    from gpualloc.workloads.blocks import checkpoint_blocks as checkpoint_blocks
    from gpualloc.workloads.blocks import find_block_linears as find_block_linears
    from gpualloc.workloads.blocks import find_blocks as find_blocks
    from gpualloc.workloads.training import build_model as build_model
    from gpualloc.workloads.training import compute_loss as compute_loss
    from gpualloc.workloads.training import find_loss as find_loss
    from gpualloc.workloads.training import make_optimizer as make_optimizer

_HOME_OF = {
    "build_model": "gpualloc.workloads.training",
    "checkpoint_blocks": "gpualloc.workloads.blocks",
    "compute_loss": "gpualloc.workloads.training",
    "count_prefetched_batches": "gpualloc.workloads.batches",
    "find_block_linears": "gpualloc.workloads.blocks",
    "find_blocks": "gpualloc.workloads.blocks",
    "find_loss": "gpualloc.workloads.training",
    "make_optimizer": "gpualloc.workloads.training",
    "open_batches": "gpualloc.workloads.batches",
}

__all__ = [
    "DEFAULT_SEQUENCE_LENGTH",
    "MODELS",
    "OPTIMIZERS",
    "TUNINGS",
    "DataInfo",
    "GptConfig",
    "LlamaConfig",
    "ModelSpec",
    "VitConfig",
    "build_model",
    "check_data",
    "checkpoint_blocks",
    "compute_loss",
    "count_prefetched_batches",
    "describe_data",
    "device_memory_reason",
    "estimate_memory_bytes",
    "find_block_linears",
    "find_blocks",
    "find_loss",
    "find_model",
    "fitting_batch_size",
    "make_optimizer",
    "open_batches",
    "unsupported_reason",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'gpualloc.workloads' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
