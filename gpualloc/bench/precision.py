"""Number formats: what a device can do, and what training in a format needs."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from gpualloc.bench.environment import compute_capability

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "pure_fp16", "pure_bf16", "fp8")

# CUDA C++ Programming Guide 13.0 (2025-08), "Arithmetic Instructions" and "Tensor Cores": first compute capability that has the format.
_MIN_COMPUTE_CAPABILITY = {"fp16": (5, 3), "pure_fp16": (5, 3), "bf16": (8, 0), "pure_bf16": (8, 0), "tf32": (8, 0), "fp8": (8, 9)}
_GPU_ONLY = ("tf32", "fp8")


def unsupported_reason(precision: str, device: str) -> str | None:
    """Why the device lacks this precision, or None where it has it.

    A CPU runs all but tf32 and fp8, those it has no instructions for by emulation (fp16 without AVX512-FP16 takes several times as long
    as fp32).
    """
    needed = _MIN_COMPUTE_CAPABILITY.get(precision)
    if device != "cuda":
        return f"{precision} is a format of GPUs" if precision in _GPU_ONLY else None
    found = compute_capability()
    if needed is not None and found is not None and found < needed:
        return f"{precision} needs compute capability {needed[0]}.{needed[1]}, this GPU has {found[0]}.{found[1]}"
    if precision == "fp8" and importlib.util.find_spec("torchao") is None:
        return "fp8 needs torchao, which is not installed here; run: pip install 'gpualloc[fp8]'"
    return None


def set_matmul_precision(precision: str) -> None:
    """Process-wide: TF32 on for "tf32" and off for all others, since "fp32" means fp32."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def trained_dtype(precision: str) -> torch.dtype:
    """Of parameters, gradients and optimiser state: fp32 under autocast."""
    import torch

    return {"fp64": torch.float64, "pure_fp16": torch.float16, "pure_bf16": torch.bfloat16}.get(precision, torch.float32)


def frozen_dtype(precision: str) -> torch.dtype:
    """Of parameters that are not trained: under autocast the format that they are computed in."""
    return autocast_dtype(precision) or trained_dtype(precision)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What autocast narrows to, or None where there is no autocast."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}.get(precision)


def convert_input(tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """Floating-point inputs in the dtype of the parameters; class and token numbers, and all else, unchanged."""
    return tensor.to(trained_dtype(precision)) if tensor.is_floating_point() else tensor


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """The context of a forward pass."""
    import torch

    dtype = autocast_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


def make_scaler(precision: str, device: str) -> torch.amp.GradScaler:
    """Loss scaling for fp16; for all others one that passes everything through (it refuses gradients in fp16, as "pure_fp16" has them)."""
    import torch

    return torch.amp.GradScaler(device, enabled=precision == "fp16")


def narrow_linears(model: torch.nn.Module) -> None:
    """For "fp8": the Linear layers of the blocks multiply in FP8 with a scale per tensor found each time, and keep fp32 weights.

    Embeddings and the output layer stay as they are, as torchao recommends.

    Raises:
        UsageError: the model has no such layers.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    from gpualloc.workloads import find_block_linears

    names = find_block_linears(model)
    # Padding: the hardware multiplies in units of 16, and so many tokens a batch need not have.
    convert_to_float8_training(model, module_filter_fn=lambda module, name: name in names, config=Float8LinearConfig(pad_inner_dim=True))
