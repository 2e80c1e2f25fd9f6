"""DistributedDataParallel on the default process group, with one of the gradient hooks.

"ddp" and "ddp_full_data" differ in what the ranks read alone: each its own part, as with a DistributedSampler, or all the same.
"""

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
_POWERSGD_START_STEP = 2  # the smallest torch takes; before it gradients are averaged as they are
_POWERSGD_EPSILON = 1e-8  # as torch's page says, against NaN where a gradient is 0, as of a branch that starts silent
_BYTES_PER_MIB = 2**20


def wrap(case: BenchCase, model: nn.Module, device: torch.device) -> Wrapped:
    """DDP with gradients as views of its buckets, which saves a copy of all gradients.

    Raises:
        KeyError: `case.hook` is none of gpualloc.strategies.HOOKS.
    """
    gradients = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wire_bytes = sum(parameter.numel() * parameter.element_size() for parameter in gradients)
    bucket_cap_mib = None
    if case.hook == "torch_powersgd" and case.device == "cpu":
        # The hook starts all-reduces when others end, with gloo on a thread of each rank's own: of two buckets' the order would differ.
        bucket_cap_mib = wire_bytes // _BYTES_PER_MIB + 1
    ddp_model = DistributedDataParallel(
        model.to(device),
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        bucket_cap_mb=bucket_cap_mib,
    )
    handle: HookHandle | None = None
    if case.hook in _TORCH_HOOKS:
        ddp_model.register_comm_hook(None, _TORCH_HOOKS[case.hook])
        wire_bytes = sum(parameter.numel() for parameter in gradients) * _TORCH_HOOK_BYTES_PER_ELEMENT
    elif case.hook == "torch_powersgd":
        wire_bytes = _register_powersgd(ddp_model, gradients)
    elif case.hook != "none":
        if case.hook not in HOOKS:
            raise KeyError(case.hook)
        handle = register_comm_hook(ddp_model, wire=case.hook.removeprefix(_GPUALLOC))
    return Wrapped(model=ddp_model, no_sync=lambda: _without_sync(ddp_model), handle=handle, wire_bytes_per_step=wire_bytes)


def _register_powersgd(ddp_model: DistributedDataParallel, gradients: list[nn.Parameter]) -> int:
    """torch's PowerSGD hook of rank 1, from the third step on. Returns the bytes it puts on the wire in a step."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd  # needs numpy

    state = powersgd.PowerSGDState(  # type: ignore[no-untyped-call]
        process_group=None, start_powerSGD_iter=_POWERSGD_START_STEP, orthogonalization_epsilon=_POWERSGD_EPSILON
    )
    ddp_model.register_comm_hook(state, powersgd.powerSGD_hook)
    wire_bytes = 0
    for parameter in gradients:
        numel = parameter.numel()
        if parameter.dim() > 1:  # a matrix of M rows and N columns becomes vectors of M and of N, where that saves enough
            factors_numel = (parameter.shape[0] + numel // parameter.shape[0]) * state.matrix_approximation_rank
            numel = factors_numel if factors_numel * state.min_compression_rate < numel else numel
        wire_bytes += numel * parameter.element_size()
    return wire_bytes


@contextmanager
def _without_sync(ddp_model: DistributedDataParallel) -> Iterator[None]:
    """DDP's no_sync, which alone would still broadcast the buffers in the first forward inside and not in the first one after."""
    before = ddp_model.require_forward_param_sync  # False inside another such block
    ddp_model.require_forward_param_sync = False
    with ddp_model.no_sync():
        yield
    ddp_model.require_forward_param_sync = before
