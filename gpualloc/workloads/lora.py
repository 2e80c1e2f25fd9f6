"""LoRA (Hu et al. 2021, arXiv:2106.09685) through peft: the weights are frozen, and adapters beside the Linear layers are trained."""

from __future__ import annotations

import torch
from torch import nn

from gpualloc.workloads.blocks import find_block_linears
from gpualloc.workloads.support import LORA_RANK

_ALPHA = 32  # the adapters' output is scaled by alpha / rank


def add_adapters(model: nn.Module, *, dtype: torch.dtype) -> None:
    """Freezes the model and gives every Linear layer in its blocks (Dettmers et al. 2023, arXiv:2305.14314, 4) adapters of that dtype.

    Raises:
        UsageError: it has no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=LORA_RANK, lora_alpha=_ALPHA, target_modules=list(find_block_linears(model))), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
