"""DistributedDataParallel on the default process group, with one of the gradient hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from gpualloc.comm import HookHandle, register_comm_hook
from gpualloc.records import BenchCase
from gpualloc.strategies import HOOKS
from gpualloc.strategies.wrapped import Wrapped

_TORCH_HOOKS = {"torch_fp16": default_hooks.fp16_compress_hook, "torch_bf16": default_hooks.bf16_compress_hook}
_TORCH_HOOK_BYTES_PER_ELEMENT = 2
_GPUALLOC = "gpualloc_"


def wrap(case: BenchCase, model: nn.Module, device: torch.device) -> Wrapped:
    """DDP with gradients as views of its buckets, which saves a copy of all gradients.

    Raises:
        KeyError: `case.hook` is none of gpualloc.strategies.HOOKS.
    """
    device_ids = [device] if device.type == "cuda" else None
    ddp_model = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
    gradients = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wire_bytes = sum(parameter.numel() * parameter.element_size() for parameter in gradients)
    handle: HookHandle | None = None
    if case.hook in _TORCH_HOOKS:
        ddp_model.register_comm_hook(None, _TORCH_HOOKS[case.hook])
        wire_bytes = sum(parameter.numel() for parameter in gradients) * _TORCH_HOOK_BYTES_PER_ELEMENT
    elif case.hook != "none":
        if case.hook not in HOOKS:
            raise KeyError(case.hook)
        handle = register_comm_hook(ddp_model, wire=case.hook.removeprefix(_GPUALLOC))
    return Wrapped(model=ddp_model, no_sync=lambda: _without_sync(ddp_model), handle=handle, wire_bytes_per_step=wire_bytes)


@contextmanager
def _without_sync(ddp_model: DistributedDataParallel) -> Iterator[None]:
    """DDP's no_sync, which alone would still broadcast the buffers in the first forward inside and not in the first one after."""
    ddp_model.require_forward_param_sync = False
    with ddp_model.no_sync():
        yield
    ddp_model.require_forward_param_sync = True
