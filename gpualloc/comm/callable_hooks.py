"""Hooks as plain callables `(state, bucket)`, for configurations that take one, such as `DDPStrategy(ddp_comm_hook=fp16_hook)`.

The same kernels as the compiled hook of `register_comm_hook`, called from Python per bucket; prefer that one where you can.
No `from __future__ import annotations` here: DDP compares the annotations of a hook as objects.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from gpualloc import _native


def fp16_hook(state: dist.ProcessGroup | None, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket in FP16: divided by the world size in FP32, narrowed, all-reduced, widened.

    Args:
        state: the process group, or None for the default one.
        bucket: DDP's; other than FP32 it is averaged in its own type.
    """
    return average_bucket(state, bucket, torch.float16)


def bf16_hook(state: dist.ProcessGroup | None, bucket: GradBucket) -> Future[Tensor]:
    """As `fp16_hook`, in BF16; also on the CPU, where torch's own is refused."""
    return average_bucket(state, bucket, torch.bfloat16)


def average_bucket(
    group: dist.ProcessGroup | None,
    bucket: GradBucket,
    wire_dtype: torch.dtype | None,
    note: Callable[[Tensor], None] | None = None,
) -> Future[Tensor]:
    """Start the bucket's all-reduce in `wire_dtype`, None for its own; `note` is given the widened average."""
    group = group if group is not None else dist.group.WORLD
    buffer = bucket.buffer()
    scale = 1.0 / dist.get_world_size(group)
    if wire_dtype is None or not is_narrowed(bucket):

        def look(done: Future[list[Tensor]]) -> Tensor:
            # The buffer itself: of a complex one (torch 2.9 hands it over so) the future's value is a view as pairs of floats.
            averaged: Tensor = done.value()[0] if buffer.is_sparse else buffer
            if note is not None:
                note(averaged.coalesce().values() if averaged.is_sparse else averaged)
            return averaged

        return _all_reduce(buffer.mul_(scale), group).then(look)
    wire = narrow(buffer, wire_dtype, scale)

    def finish(done: Future[list[Tensor]]) -> Tensor:
        widen(done.value()[0], buffer)
        if note is not None:
            note(buffer)
        return buffer

    return _all_reduce(wire, group).then(finish)


def narrow(buffer: Tensor, wire_dtype: torch.dtype, scale: float) -> Tensor:
    """A new flat tensor of buffer * scale: multiplied in FP32, then rounded."""
    if not _native.available_or_warn():
        return buffer.mul(scale).to(wire_dtype)
    from gpualloc import ops

    wire = torch.empty(buffer.numel(), dtype=wire_dtype, device=buffer.device)
    ops.pack_flat(buffer, wire, scale)
    return wire


def widen(wire: Tensor, buffer: Tensor) -> None:
    if not _native.available_or_warn():
        buffer.copy_(wire)
        return
    from gpualloc import ops

    ops.unpack_flat(wire, buffer)


def _all_reduce(tensor: Tensor, group: dist.ProcessGroup | None) -> Future[list[Tensor]]:
    future: Future[list[Tensor]] = dist.all_reduce(tensor, group=group, async_op=True).get_future()
    return future


def is_narrowed(bucket: GradBucket) -> bool:
    """Only FP32 loses nothing its user asked for. DDP hands a complex gradient over as pairs of FP32."""
    buffer = bucket.buffer()
    return buffer.dtype == torch.float32 and not buffer.is_sparse and not bucket.parameters()[0].is_complex()
