"""The repeated blocks of a model: what is recomputed, adapted or narrowed one by one."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from gpualloc.errors import UsageError


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> block, in order: the members of the outermost lists or sequences in which a class of module occurs more than once.

    These are the blocks of a transformer, the bottlenecks of a ResNet and the inverted residuals of a MobileNet.

    Raises:
        UsageError: there are none.
    """
    blocks = _find_below(model, "")
    if not blocks:
        raise UsageError(
            f"{type(model).__name__} has no nn.ModuleList or nn.Sequential with repeated blocks; "
            "leave activation checkpointing, LoRA and fp8 out for it"
        )
    return blocks


def checkpoint_blocks(model: nn.Module) -> None:
    """Has each block keep its input alone and compute its activations a second time in the backward pass. Names stay as they are.

    Batch normalisation moves its running statistics in both passes.
    """
    for block in find_blocks(model).values():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def find_block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> nn.Linear, of all inside the blocks.

    Raises:
        UsageError: there are none.
    """
    linears = {
        f"{name}.{inner}": module
        for name, block in find_blocks(model).items()
        for inner, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not linears:
        raise UsageError(f"the blocks of {type(model).__name__} have no nn.Linear; LoRA and fp8 are for models that do")
    return linears


def _find_below(module: nn.Module, prefix: str) -> dict[str, nn.Module]:
    children = dict(module.named_children())
    classes = [type(child) for child in children.values() if next(child.children(), None) is not None]
    if isinstance(module, nn.ModuleList | nn.Sequential):
        repeated = {kind for kind in classes if classes.count(kind) > 1}
        if repeated:
            return {prefix + name: child for name, child in children.items() if type(child) in repeated}
    found = {}
    for name, child in children.items():
        found.update(_find_below(child, f"{prefix}{name}."))
    return found
