"""Every way to register a hook, and the small models with known gradients that the scenarios take through all of them.

Most gradients are whole numbers of at most 8, chosen so that every division by 2 or 4 ranks and every sum fits the 8 bits of a
BF16 significand: their average is known exactly and every wire has to give exactly it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from gpualloc.comm import bf16_hook, fp16_hook, python_hook

UNIT = {"fp32": 2.0**-24, "auto": 2.0**-11, "int8": 1 / 254, "fp16": 2.0**-11, "bf16": 2.0**-8}  # half an ulp of the wire, relative

# Two roundings to a 127th of a block's largest number, half of it each, and as much again carried over from the step before.
ROUNDS_WHOLE_NUMBERS = {"int8": 2 / 127}


def _own_group(ddp: DistributedDataParallel) -> dist.ProcessGroup | None:
    return None if ddp.process_group is dist.group.WORLD else ddp.process_group


HOOKS: dict[str, Callable[[DistributedDataParallel], Any]] = {
    "stock": lambda ddp: None,
    "torch_fp16": lambda ddp: ddp.register_comm_hook(_own_group(ddp), fp16_compress_hook),
    "fp32": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp32"),
    # Without what changes from step to step: 16 bits from the first one, summed as the backend does.
    "fp16": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp16", wire_scale=1.0, accumulate="wire"),
    "bf16": lambda ddp: gpualloc.register_comm_hook(ddp, wire="bf16", accumulate="wire"),
    "fp16_scaled": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp16"),
    "fp16_sum32": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp16", wire_scale=1.0, accumulate="fp32"),
    "bf16_sum32": lambda ddp: gpualloc.register_comm_hook(ddp, wire="bf16", accumulate="fp32"),
    "int8": lambda ddp: gpualloc.register_comm_hook(ddp, wire="int8"),
    "auto": lambda ddp: gpualloc.register_comm_hook(ddp, max_communicators=1),  # others are started one by one, which takes seconds
    "fp16_callable": lambda ddp: ddp.register_comm_hook(_own_group(ddp), fp16_hook),
    "bf16_callable": lambda ddp: ddp.register_comm_hook(_own_group(ddp), bf16_hook),
    "fp16_python": lambda ddp: python_hook.register(ddp, "fp16"),  # register_comm_hook's stand-in for the compiled hook
}
EVERY_HOOK = tuple(name for name in HOOKS if name not in ("stock", "torch_fp16"))
# FP32 leaves as 16 bits from the first step on.
NARROW = tuple(name for name in EVERY_HOOK if name.startswith(("fp16", "bf16")) and name != "fp16_scaled")
WITH_HANDLE = tuple(name for name in EVERY_HOOK if "callable" not in name)


def wire_of(hook: str) -> str:
    return hook.split("_")[0]


def with_each(rank: int, world_size: int, device: str, scenario: Callable[..., Any], hooks: Sequence[str], *args: Any) -> dict[str, Any]:
    """What `scenario(rank, world_size, device, hook, *args)` gives for each hook, in one process group."""
    return {hook: scenario(rank, world_size, device, hook, *args) for hook in hooks}


class Dot(nn.Module):
    """loss = sum(parameter * coefficient), so that a parameter's gradient is its coefficient."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight) for weight in weights)

    def forward(self, coefficients: list[Tensor]) -> Tensor:
        return torch.stack([(w * c.to(w.device)).sum() for w, c in zip(self.weights, coefficients, strict=True)]).sum()


def wrap(model: nn.Module, device: str, hook: str, **options: Any) -> tuple[DistributedDataParallel, Any]:
    """(the DDP model on the device, what registering the hook returned)."""
    ddp = DistributedDataParallel(model.to(device), **options)
    return ddp, HOOKS[hook](ddp)


def whole(rank: int, step: int, *shape: int) -> Tensor:
    """Whole numbers from -8 to 8, this rank's gradient of a step."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randint(-8, 9, shape, generator=generator).float()


def whole_mean(world_size: int, step: int, *shape: int) -> Tensor:
    return torch.stack([whole(rank, step, *shape) for rank in range(world_size)]).mean(0)


def must_equal(got: Tensor | None, want: Tensor, *where: Any) -> None:
    """Bit for bit, the message saying in which of the many cases of a scenario it was not."""
    got = got.cpu() if got is not None else None
    want = want.cpu()
    if got is None or got.dtype != want.dtype or not torch.equal(got, want):
        raise AssertionError(f"{' '.join(map(str, where))}: got {got}, expected {want}")


def must_average(got: Tensor | None, want: Tensor, hook: str, *where: Any, largest: float = 8.0) -> None:
    """The average of numbers of at most `largest`: bit for bit, but for a wire that rounds whole numbers."""
    atol = ROUNDS_WHOLE_NUMBERS.get(wire_of(hook), 0.0) * largest
    if atol == 0:
        must_equal(got, want, hook, *where)
    else:
        torch.testing.assert_close(
            got, want.to(got.device) if got is not None else want, rtol=0, atol=atol, msg=lambda m: f"{hook} {where}: {m}"
        )


def error_bound(grads: Tensor, dtype: torch.dtype, wire: str, largest: float) -> Tensor:
    """Of the average of [world_size, ...] local gradients, `largest` being that of their bucket.

    W roundings of at most half an ulp of their mean magnitude (see test_hooks.py).
    """
    unit = {torch.float64: 2.0**-53, torch.bfloat16: UNIT["bf16"], torch.float32: UNIT[wire]}[dtype]
    subnormal = 2.0**-25 if dtype == torch.float32 and wire == "fp16" else 0.0
    if wire == "int8" and dtype == torch.float32:
        # Half a step of a block's largest number on every rank and once more for the sum; the last step's loss comes on top.
        return torch.full_like(grads[0], 2 * 2 * unit * largest, dtype=torch.float64)
    return len(grads) * (unit * grads.abs().mean(0) + subnormal)
