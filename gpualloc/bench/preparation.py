"""A case's model made ready for a strategy: weights, adapters, number format, memory layout, recomputation, compilation.

Everything happens in place, so that parameters keep their names and strategies meet the model they know.
"""

from __future__ import annotations

import torch
from torch import nn

from gpualloc.bench import precision as precisions
from gpualloc.records import BenchCase
from gpualloc.strategies import WHOLE_MODEL
from gpualloc.workloads import build_model, checkpoint_blocks


def prepare_model(case: BenchCase, device: torch.device) -> nn.Module:
    """The model on the device, or on the CPU for a strategy that gives a rank a part of it. Process-wide: allows TF32 or not, as asked.

    Raises:
        UsageError: the model is not made for what the case asks.
    """
    precisions.set_matmul_precision(case.precision)
    dtype, frozen_dtype = precisions.trained_dtype(case.precision), precisions.frozen_dtype(case.precision)
    build_device = device if case.strategy in WHOLE_MODEL else torch.device("cpu")
    model = build_model(case, device=build_device, dtype=dtype, frozen_dtype=frozen_dtype)
    if case.precision == "fp8":
        precisions.narrow_linears(model)
    if case.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if case.activation_checkpointing:
        checkpoint_blocks(model)
    if case.compile:
        # Inside DDP, whose forward tells dynamo to cut the graph at its buckets. model.compile() would leave an nn.Sequential as it is.
        model.forward = torch.compile(model.forward)  # type: ignore[method-assign]
    return model
