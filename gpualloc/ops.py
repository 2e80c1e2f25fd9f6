"""Compiled operations on gradients: many tensors into one FP16 or BF16 buffer in one pass, and back.

    pack:    flat[i]   = narrow(float(tensor[j]) * scale)
    unpack:  tensor[j] = convert(float(flat[i]) * scale)

The multiplication is in FP32 before the rounding to 16 bits (nearest even). Tensors lie one after the other in `flat`, each
in its own memory order, so a channels-last gradient comes back into a channels-last tensor. Counters are one-element tensors
on the same device that are *added to*: nothing is read back to the host. CUDA work goes to the current stream, allocates
nothing after the first call on a stream, and does not synchronise. Results are the same bits from run to run.

The schemas live in csrc/ops.cpp; `torch.ops.gpualloc.*` are the same operations.

Raises (all functions): TypeError for a dtype, ValueError for a shape, layout or device, naming the argument and what arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpualloc import _native

_direct = _native.module()  # loading it registers torch.ops.gpualloc


def pack(tensors: Sequence[Tensor], out: Tensor, scale: float = 1.0, *, nonfinite: Tensor | None = None) -> None:
    """Narrow `tensors` into `out`.

    Args:
        tensors: FP32, BF16, FP16 or FP64, any shapes, dense memory (contiguous or channels-last), one device.
        out: [N] FP16 or BF16, N the sum of the tensors' elements.
        scale: factor applied in FP32 before narrowing, such as 1 / world_size.
        nonfinite: [1] int64; the number of inf and NaN in `out` is added to it.
    """
    if torch.compiler.is_compiling():
        torch.ops.gpualloc.pack(tensors, out, scale, nonfinite=nonfinite)
    else:
        _direct.pack(tensors, out, scale, nonfinite)


def unpack(
    flat: Tensor, tensors: Sequence[Tensor], scale: float = 1.0, *, sumsq: Tensor | None = None, nonfinite: Tensor | None = None
) -> None:
    """Widen `flat` into `tensors`.

    Args:
        flat: [N] FP16 or BF16.
        tensors: as for `pack`; overwritten.
        scale: factor applied in FP32.
        sumsq: [1] FP64; the sum of the squared results (in FP32, before rounding to the tensors' dtype) is added to it.
        nonfinite: [1] int64; the number of inf and NaN in the results is added to it.
    """
    if torch.compiler.is_compiling():
        torch.ops.gpualloc.unpack(flat, tensors, scale, sumsq=sumsq, nonfinite=nonfinite)
    else:
        _direct.unpack(flat, tensors, scale, sumsq, nonfinite)


def pack_flat(buffer: Tensor, out: Tensor, scale: float = 1.0, *, nonfinite: Tensor | None = None) -> None:
    """`pack` of one tensor, such as DDP's bucket buffer."""
    pack([buffer], out, scale, nonfinite=nonfinite)


def unpack_flat(flat: Tensor, buffer: Tensor, scale: float = 1.0, *, sumsq: Tensor | None = None, nonfinite: Tensor | None = None) -> None:
    """`unpack` into one tensor, such as DDP's bucket buffer."""
    unpack(flat, [buffer], scale, sumsq=sumsq, nonfinite=nonfinite)


# The operations return nothing and only write to their arguments, so there is nothing to infer for fake tensors.
for _name in ("pack", "unpack", "pack_flat", "unpack_flat"):
    torch.library.register_fake(f"gpualloc::{_name}", lambda *args, **kwargs: None)
