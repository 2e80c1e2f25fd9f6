"""`register_comm_hook`: attaches the compiled hook to DDP's reducer, or a Python hook of the same arithmetic without it."""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel

from gpualloc import _native
from gpualloc.comm.handle import HookHandle
from gpualloc.errors import GpuallocError, UsageError

WIRES = ("fp32", "fp16", "bf16")


def register_comm_hook(
    ddp_model: DistributedDataParallel, wire: str = "fp16", *, wire_scale: str | None = None, sum_squares: bool = False
) -> HookHandle:
    """Send this model's FP32 gradients as `wire` from the next backward pass on.

    Each bucket is divided by the world size in FP32, narrowed, all-reduced on the model's process group and widened back, on
    the streams DDP uses and without synchronising. Gradients of other types (FP64, complex, FP16, BF16, sparse) are averaged
    in their own type. `wire="fp32"` equals DDP without a hook bit for bit (where `gradient_as_bucket_view=True`, gradients
    are kept with `zero_grad(set_to_none=False)` and the world size is no power of two: to one rounding).

    `gradient_as_bucket_view=True` saves DDP a copy of every gradient and is what this hook is fastest with.

    Args:
        ddp_model: before its first backward pass; a DDP model takes one hook.
        wire: "fp32", "fp16" or "bf16".
        wire_scale: "dynamic" multiplies FP16 gradients on the wire with a power of two that follows the largest averaged gradient,
            equal on all ranks, so that small gradients are not lost to FP16's range and large ones do not overflow it. It grows
            by a factor of two a step and falls at once; a step in which it was still too large is counted as non-finite. CPU
            models only so far. None: 1.
        sum_squares: sum the squares of the averaged gradients while they are widened, so that `handle.grad_norm()` and
            `handle.clip_grad_norm_()` need not read them again.

    Raises:
        UsageError: not a DDP model, another wire, or a wire scale on another wire than FP16 or on CUDA.
        GpuallocError: the model has a hook already.
        NativeUnavailableError: a dynamic wire scale without the compiled extension.
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        raise UsageError(
            f"register_comm_hook: expected a DistributedDataParallel model, got {type(ddp_model).__name__}; "
            "wrap the model first: DistributedDataParallel(model)"
        )
    if wire not in WIRES:
        raise UsageError(f"register_comm_hook: wire={wire!r} is not one of {', '.join(WIRES)}")
    if wire_scale not in (None, "dynamic"):
        raise UsageError(f'register_comm_hook: wire_scale={wire_scale!r} is neither "dynamic" nor None')
    if wire_scale is not None and wire != "fp16":
        raise UsageError(f"register_comm_hook: wire_scale={wire_scale!r} is for wire='fp16', which has a narrow range; {wire!r} needs none")
    if wire_scale is not None and next(ddp_model.parameters()).is_cuda:
        raise UsageError("register_comm_hook: wire_scale='dynamic' is for CPU models so far: its CUDA kernels are not proven; leave it out")
    try:
        if wire_scale is not None or _native.available_or_warn():
            return _register_native(ddp_model, wire, dynamic_scale=wire_scale is not None, sum_squares=sum_squares)
        from gpualloc.comm import python_hook

        return python_hook.register(ddp_model, wire)
    except RuntimeError as error:
        if "can only be called once" in str(error):
            raise GpuallocError(
                "register_comm_hook: this DDP model has a communication hook already; wrap the model anew to change it"
            ) from error
        raise


def _register_native(ddp_model: DistributedDataParallel, wire: str, **options: bool) -> HookHandle:
    native = _native.module()
    state = native.register_gradient_hook(ddp_model.reducer, ddp_model.process_group, wire, **options)
    if ddp_model.logger is not None:
        ddp_model.logger._set_comm_hook_name(f"gpualloc_{wire}")
    return HookHandle(ddp_model, state, native.HookTotals, wire=wire, native=True)
