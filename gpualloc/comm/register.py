"""`register_comm_hook`: attaches the compiled hook to DDP's reducer, or a Python hook of the same arithmetic without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gpualloc import _native
from gpualloc.comm.compile_mode import check_compile_mode
from gpualloc.comm.handle import HookHandle
from gpualloc.errors import GpuallocError, UsageError

WIRES = ("auto", "fp32", "fp16", "bf16", "int8")
_NEEDS_EXTENSION = ("int8",)
_MAX_COMMUNICATORS = 8


def register_comm_hook(
    ddp_model: DistributedDataParallel,
    wire: str = "auto",
    *,
    allow_int8: bool = False,
    max_communicators: int = 4,
    wire_scale: str | float = "dynamic",
    accumulate: str | None = None,
    error_feedback: bool | None = None,
    sum_squares: bool = False,
) -> HookHandle:
    """Average this model's gradients over the ranks through gpualloc from the next backward pass on.

    With `wire="auto"` the hook measures the running job: when buckets become ready, how long their collectives take, and how long
    a step's communication takes with a few plans, each tried for some steps. It keeps the fastest: which buckets travel together,
    in FP32 where that is hidden behind the backward pass anyway and in FP16 where it would be waited for. All ranks decide alike.
    The other wires send every bucket of FP32 gradients in that format. Gradients of other types (FP64, complex, FP16, BF16, sparse)
    are averaged in their own type. `wire="fp32"` equals DDP without a hook bit for bit (where `gradient_as_bucket_view=True`,
    gradients are kept with `zero_grad(set_to_none=False)` and the world size is no power of two: to one rounding).

    `gradient_as_bucket_view=True` saves DDP a copy of every gradient and is what this hook is fastest with.

    Args:
        ddp_model: before its first backward pass; a DDP model takes one hook.
        wire: "auto", "fp32", "fp16", "bf16" or "int8" (blocks of 256 values share an FP32 scale; NCCL or gloo).
        allow_int8: whether "auto" may choose 8 bits.
        max_communicators: how many NCCL communicators "auto" may use side by side, where gradients would be waited for: over TCP one
            of them leaves most of the link idle. Further ones are made when first tried; 1: none are.
        wire_scale: what FP16 gradients are multiplied with on the wire. "dynamic": a power of two that follows the largest gradient
            of all ranks, so that sums cannot overflow and small gradients are not lost; the first step goes in FP32 to learn it. A
            number, best a power of two: always that.
        accumulate: "fp32" sums 16-bit gradients in FP32 and rounds the sum once; "wire" sums as the backend does, NCCL in 16 bits at
            every hop. None: "fp32" on gloo, where it is also faster, else "wire".
        error_feedback: keep what narrowing lost and add it in the next step, 4 bytes an element. None: for int8.
        sum_squares: sum the squares of the averaged gradients while they are written back, so that `handle.grad_norm()` and
            `handle.clip_grad_norm_()` need not read them again.

    Warns:
        RuntimeWarning: `torch._dynamo.config.optimize_ddp` is off, which takes a compiled model its overlap.

    Raises:
        UsageError: not a DDP model, or one wrapped for dynamo's Python reducer; an argument that cannot be meant.
        GpuallocError: the model has a hook already.
        NativeUnavailableError: int8, `accumulate="fp32"` or error feedback without the compiled extension.
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        raise UsageError(
            f"register_comm_hook: expected a DistributedDataParallel model, got {type(ddp_model).__name__}; "
            "wrap the model first: DistributedDataParallel(model)"
        )
    if wire not in WIRES:
        raise UsageError(f"register_comm_hook: wire={wire!r} is not one of {', '.join(WIRES)}")
    if allow_int8 and wire != "auto":
        raise UsageError(f"register_comm_hook: allow_int8=True is for wire='auto', which chooses; wire={wire!r} is fixed")
    if accumulate not in (None, "wire", "fp32"):
        raise UsageError(f"register_comm_hook: accumulate={accumulate!r} is none of 'wire', 'fp32' and None")
    if not 1 <= max_communicators <= _MAX_COMMUNICATORS:
        raise UsageError(f"register_comm_hook: max_communicators={max_communicators} is out of range; choose 1 to {_MAX_COMMUNICATORS}")
    scale = _fixed_scale(wire_scale)
    check_compile_mode(ddp_model)
    try:
        if wire in _NEEDS_EXTENSION or allow_int8 or accumulate == "fp32" or error_feedback or _native.available_or_warn():
            return _register_native(
                ddp_model,
                wire,
                sum_squares=sum_squares,
                allow_int8=allow_int8,
                max_lanes=max_communicators,
                scale=scale,
                sum_in_fp32=None if accumulate is None else accumulate == "fp32",
                feedback=error_feedback,
            )
        from gpualloc.comm import python_hook

        return python_hook.register(ddp_model, wire)
    except RuntimeError as error:
        if "can only be called once" in str(error):
            raise GpuallocError(
                "register_comm_hook: this DDP model has a communication hook already; wrap the model anew to change it"
            ) from error
        raise


def _fixed_scale(wire_scale: str | float) -> float | None:
    if wire_scale == "dynamic":
        return None
    if isinstance(wire_scale, str) or not (math.isfinite(wire_scale) and wire_scale > 0):
        raise UsageError(f'register_comm_hook: wire_scale={wire_scale!r} is neither "dynamic" nor a positive number such as 1.0')
    return float(wire_scale)


def _register_native(ddp_model: DistributedDataParallel, wire: str, *, sum_squares: bool, **options: Any) -> HookHandle:
    native = _native.module()
    group = ddp_model.process_group
    # One rank has nothing to choose and nothing to send.
    chosen = "fp32" if group.size() == 1 else None
    state = native.register_gradient_hook(
        ddp_model.reducer,
        group,
        wire=chosen if wire == "auto" else wire,
        make_lanes=_lane_maker(group),
        sum_squares=sum_squares,
        **options,
    )
    if ddp_model.logger is not None:
        ddp_model.logger._set_comm_hook_name(f"gpualloc_{wire}")
    return HookHandle(ddp_model, state, native.HookTotals, wire=wire, native=True, sum_squares=sum_squares)


def _lane_maker(group: dist.ProcessGroup) -> Callable[[int], list[dist.ProcessGroup]] | None:
    """Makes further process groups of the same ranks; None where more of them would not help."""
    device = torch.device("cuda")
    # By what the backend answers to, which a rehearsal's does to the name it stands for.
    if device not in group._device_types or group._get_backend(device).name() != "nccl":
        return None
    ranks = dist.get_process_group_ranks(group)
    return lambda count: [dist.new_group(ranks, backend="nccl", use_local_synchronization=True) for _ in range(count)]
