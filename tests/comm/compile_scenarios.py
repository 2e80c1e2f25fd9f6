"""What one rank does when its DDP model is compiled: the same gradients, and which buckets leave before the backward pass is done."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from gpualloc.comm import fp16_hook
from gpualloc.errors import UsageError
from tests.comm.hook_table import HOOKS, must_average, whole, whole_mean

LAYERS = 4
ELEMENTS = 300_000  # a layer is above DDPOptimizer's first bucket of 1 MiB, so that each has a bucket of its own

buckets_so_far: Callable[[], int]  # set by a scenario for `seen_from`
seen: list[int] = []  # buckets on the way when the backward pass came to a layer, last layer first


@torch.library.custom_op("gpualloc_tests::through", mutates_args=())
def through(x: Tensor) -> Tensor:
    return x.clone()


@torch.library.custom_op("gpualloc_tests::through_backward", mutates_args=())
def through_backward(gradient: Tensor) -> Tensor:
    seen.append(buckets_so_far())
    return gradient.clone()


through.register_fake(torch.empty_like)
through_backward.register_fake(torch.empty_like)
through.register_autograd(lambda ctx, gradient: through_backward(gradient))


class Layer(nn.Module):
    """x + weight * coefficient: the weight's gradient is the coefficient. Its backward pass is seen by `through_backward`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ELEMENTS))

    def forward(self, x: Tensor, coefficient: Tensor) -> Tensor:
        return through(x + self.weight * coefficient)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: Tensor, coefficients: list[Tensor]) -> Tensor:
        for layer, coefficient in zip(self.layers, coefficients, strict=True):
            x = layer(x, coefficient)
        return x.sum()


def compiled(rank: int, world_size: int, device: str, hook: str, where: str, optimize_ddp: bool) -> tuple[list[list[int]], list[str]]:
    """How many buckets were on the way when the backward pass came to each layer, in each of three steps; and warnings at registration.

    `where`: "nowhere", "inside" is DDP(torch.compile(model)), "outside" torch.compile(DDP(model)).
    """
    global buckets_so_far
    torch._dynamo.reset()
    with torch._dynamo.config.patch(optimize_ddp=optimize_ddp):
        model: nn.Module = Layers().to(device)
        if where == "inside":
            model = torch.compile(model, backend="aot_eager")
        ddp = DistributedDataParallel(model, bucket_cap_mb=1, gradient_as_bucket_view=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            buckets_so_far = _counted(ddp, hook)
        run = torch.compile(ddp, backend="aot_eager") if where == "outside" else ddp
        per_step = []
        for step in range(3):
            ddp.zero_grad()
            seen.clear()
            before = buckets_so_far()
            local = [whole(rank, 10 * step + index, ELEMENTS).to(device) for index in range(LAYERS)]
            run(torch.zeros(ELEMENTS, device=device), local).backward()
            for index, weight in enumerate(ddp.parameters()):
                must_average(weight.grad, whole_mean(world_size, 10 * step + index, ELEMENTS), hook, where, optimize_ddp, step, index)
            per_step.append([count - before for count in seen])
    return per_step, [str(warning.message) for warning in caught]


def _counted(ddp: DistributedDataParallel, hook: str) -> Callable[[], int]:
    """Registers the hook; how many buckets it has been given so far."""
    if "callable" not in hook:
        handle = HOOKS[hook](ddp)
        return lambda: handle.stats().transfers
    given = 0

    def counting(state: dist.ProcessGroup | None, bucket: dist.GradBucket) -> Any:
        nonlocal given
        given += 1
        return fp16_hook(state, bucket)

    counting.__annotations__ = {}
    ddp.register_comm_hook(None, counting)
    return lambda: given


def python_reducer(rank: int, world_size: int, device: str) -> str:
    """What registering on a model wrapped for dynamo's Python reducer raises."""
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        ddp = DistributedDataParallel(nn.Linear(2, 2).to(device))
    with pytest.raises(UsageError) as raised:
        gpualloc.register_comm_hook(ddp)
    return str(raised.value)
