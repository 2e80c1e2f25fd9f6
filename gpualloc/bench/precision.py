"""Number formats: what a device can do, and what training in a format needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from gpualloc.bench.environment import compute_capability

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp64", "fp32", "fp16", "bf16")

# CUDA C++ Programming Guide 13.0 (2025-08), "Arithmetic Instructions": first compute capability with native arithmetic.
_MIN_COMPUTE_CAPABILITY = {"fp16": (5, 3), "bf16": (8, 0)}


def unsupported_reason(precision: str, device: str) -> str | None:
    """Why the device lacks this precision, or None where it has it.

    A CPU runs all four, those it has no instructions for by emulation (fp16 without AVX512-FP16 takes several times as long as fp32).
    """
    needed = _MIN_COMPUTE_CAPABILITY.get(precision)
    if device != "cuda" or needed is None:
        return None
    found = compute_capability()
    if found is None or found >= needed:
        return None
    return f"{precision} needs compute capability {needed[0]}.{needed[1]}, this GPU has {found[0]}.{found[1]}"


def convert_model(model: torch.nn.Module, precision: str) -> torch.nn.Module:
    """The fp32 model with the parameters its precision trains: fp64 ones for "fp64", fp32 ones for all others.

    Process-wide: turns TF32 off, since "fp32" means fp32.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    return model.double() if precision == "fp64" else model


def convert_input(tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """Floating-point inputs in fp64 for "fp64"; class and token numbers, and all else, unchanged."""
    return tensor.double() if precision == "fp64" and tensor.is_floating_point() else tensor


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """The context of a forward pass."""
    import torch

    if precision not in ("fp16", "bf16"):
        return nullcontext()
    return torch.autocast(device, dtype=torch.float16 if precision == "fp16" else torch.bfloat16)


def make_scaler(precision: str, device: str) -> torch.amp.GradScaler:
    """Loss scaling for fp16; for all others one that passes everything through."""
    import torch

    return torch.amp.GradScaler(device, enabled=precision == "fp16")
