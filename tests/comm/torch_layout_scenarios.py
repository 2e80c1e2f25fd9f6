"""What one rank does when the hook is held to torch's own test_c10d_*.py: types, memory formats and strides of gradients."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from tests.comm.hook_table import error_bound, must_average, whole, wire_of, wrap


def mixed_dtypes(rank: int, world_size: int, device: str, hook: str) -> tuple[dict[torch.dtype, Tensor], Any]:
    """One model of six types; all ranks have the gradient 1 + 2 ** -12, which only FP16 and BF16 cannot hold."""
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(nn.Parameter(torch.ones(6, dtype=dtype)) for dtype in dtypes)

        def forward(self, value: float) -> Tensor:
            return torch.stack([(w * torch.full_like(w, value)).sum().real.double() for w in self.weights]).sum()

    ddp, handle = wrap(Mixed(), device, hook)
    for _ in range(2):
        before = handle.stats().wire_bytes if handle is not None else 0
        ddp.zero_grad()
        ddp(1 + 2.0**-12).backward()
    grads = {weight.dtype: weight.grad.cpu() for weight in ddp.module.weights}
    return grads, handle.stats().wire_bytes - before if handle is not None else None


def layouts(rank: int, world_size: int, device: str, hook: str) -> None:
    """A convolutional net in NCHW, NHWC and both x dtypes x bucket sizes x 3 steps, beside the same net without DDP."""
    formats = {
        "nchw": (torch.contiguous_format, torch.contiguous_format),
        "nhwc": (torch.channels_last, torch.channels_last),
        "mixed": (torch.channels_last, torch.contiguous_format),
    }
    torch.backends.cudnn.deterministic = True  # the gradient that another rank computed, bit for bit
    for layout, dtype, cap, view in itertools.product(formats, (torch.float32, torch.float64, torch.bfloat16), (5e-4, 25), (False, True)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 2)).to(dtype)
        first, last = formats[layout]
        net[0].to(memory_format=first)
        net[2].to(memory_format=last)
        net[4].to(memory_format=first)
        alone = copy.deepcopy(net).to(device)
        ddp, _ = wrap(net, device, hook, bucket_cap_mb=cap, gradient_as_bucket_view=view)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for step in range(3):
            alone.load_state_dict(net.state_dict())
            local = [_conv_gradients(alone, r, step, first) for r in range(world_size)]
            optimizer.zero_grad()
            ddp(_images(rank, step, dtype, first).to(device)).square().mean().backward()
            largest = max(gradient.abs().max().item() for one in local for gradient in one)
            for index, weight in enumerate(net.parameters()):
                grads = torch.stack([one[index].double() for one in local])
                limit = error_bound(grads, dtype, wire_of(hook), largest)
                error = (weight.grad.double() - grads.mean(0)).abs()
                where = f"{hook} {layout} {dtype} {cap} {view} step {step} parameter {index}"
                assert (error <= limit).all(), f"{where}: {(error - limit).max()} above the limit"
                assert weight.grad.stride() == weight.stride(), f"{where}: {weight.grad.stride()}, parameter {weight.stride()}"
            optimizer.step()


def strides(rank: int, world_size: int, device: str, hook: str) -> None:
    """Gradients whose strides are not their parameter's: channels-last, transposed, expanded, every second element."""

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterDict(
                {
                    "contiguous": torch.ones(4, 3, 2, 5),
                    "last": torch.ones(4, 3, 2, 5).to(memory_format=torch.channels_last),
                    "transposed": torch.ones(7, 5),
                    "expanded": torch.ones(7, 5),
                    "stepped": torch.ones(7, 5),
                    "holes": torch.ones(7, 10, device=device)[:, ::2],
                }
            )

        def forward(self, gradients: dict[str, Tensor]) -> Tensor:
            return torch.stack([GivenGradient.apply(w, on_device(gradients[name], w.device)) for name, w in self.weights.items()]).sum()

    def gradients(rank: int, step: int) -> dict[str, Tensor]:
        stepped = torch.zeros(7, 10)
        stepped[:, ::2] = whole(rank, step, 7, 5)
        return {
            "contiguous": whole(rank, step, 4, 3, 2, 5).to(memory_format=torch.channels_last),
            "last": whole(rank, step, 4, 3, 2, 5),
            "transposed": whole(rank, step, 5, 7).t(),
            "expanded": whole(rank, step, 7, 1).expand(7, 5),
            "stepped": stepped[:, ::2],
            "holes": whole(rank, step, 7, 5),
        }

    for view in (False, True):
        ddp, _ = wrap(Given(), device, hook, gradient_as_bucket_view=view, bucket_cap_mb=3e-4)
        for step in range(3):
            ddp.zero_grad()
            ddp(gradients(rank, step)).backward()
            everyones = [gradients(r, step) for r in range(world_size)]
            for name, weight in ddp.module.weights.items():
                must_average(weight.grad, torch.stack([one[name] for one in everyones]).mean(0), hook, view, step, name)


def _images(rank: int, step: int, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(2, 4, 7, 7, generator=generator).to(dtype).to(memory_format=memory_format)


def _conv_gradients(net: nn.Module, rank: int, step: int, memory_format: torch.memory_format) -> list[Tensor]:
    net.zero_grad()
    weight = next(net.parameters())
    net(_images(rank, step, weight.dtype, memory_format).to(weight.device)).square().mean().backward()
    return [weight.grad for weight in net.parameters()]


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of the same strides; `to` would make expanded and stepped tensors dense."""
    if tensor.device == device:
        return tensor
    copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if 0 in tensor.stride():
        return copied[:, :1].copy_(tensor[:, :1]).expand(tensor.shape)
    return copied.copy_(tensor)


class GivenGradient(torch.autograd.Function):
    """weight.sum(), with a gradient of any strides."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return weight.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None
