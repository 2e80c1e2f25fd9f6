"""What one rank does when the hook is held to torch's own distributed_test.py: training, resuming, uneven inputs."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from tests.comm.hook_table import HOOKS, Dot, must_average, must_equal, whole, whole_mean, wrap


def optimizer_run(rank: int, world_size: int, device: str, hook: str, optimizer_name: str, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters after `steps` of positive gradients, and how far each travelled but for weight decay, in FP64."""
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    }[optimizer_name]
    ddp, _ = wrap(Dot(torch.ones(300), torch.ones(7, 11)), device, hook, bucket_cap_mb=5e-4)
    optimizer = make(ddp.parameters())
    weights = list(ddp.module.weights)
    keep = 1 - 0.01 * 0.1 if optimizer_name == "adamw" else 1.0
    travelled = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        optimizer.zero_grad()
        ddp([torch.exp2(8 * torch.rand(weight.shape, generator=generator) - 4) for weight in weights]).backward()
        before = [weight.detach().double() for weight in weights]
        optimizer.step()
        for total, old, new in zip(travelled, before, weights, strict=True):
            total += (new.detach().double() - keep * old).abs()
    return [weight.detach().cpu() for weight in weights], [total.cpu() for total in travelled]


def parity_of_100_steps(rank: int, world_size: int, device: str, hook: str) -> None:
    """The input is the rank, so every weight's gradient is the mean of the ranks; beside DDP without a hook."""
    (plain, _), (hooked, _) = wrap(nn.Linear(1, 5), device, "stock"), wrap(nn.Linear(1, 5), device, hook)
    for step in range(100):
        for ddp in (plain, hooked):
            ddp.zero_grad(set_to_none=step % 2 == 0)
            ddp(torch.full((1, 1), float(rank), device=device)).sum().backward()
        must_average(hooked.module.weight.grad, torch.full((5, 1), (world_size - 1) / 2), hook, step)
        must_average(hooked.module.weight.grad, plain.module.weight.grad, hook, step)
        must_average(hooked.module.bias.grad, torch.ones(5), hook, step)


def accumulate_three(rank: int, world_size: int, device: str, hook: str) -> Any:
    """Two micro-batches under no_sync and a synchronised one, from the very first step; then the gradient is averaged once."""
    ddp, handle = wrap(Dot(torch.ones(13), torch.ones(2)), device, hook, bucket_cap_mb=3e-5)
    for step in range(3):
        ddp.zero_grad()
        with ddp.no_sync():
            for micro in (0, 1):
                local = [whole(rank, 10 * step + micro, *weight.shape) for weight in ddp.module.weights]
                ddp(local).backward()
                must_equal(ddp.module.weights[0].grad, sum(whole(rank, 10 * step + m, 13) for m in range(micro + 1)), hook, "local")
        ddp([whole(rank, 10 * step + 2, *weight.shape) for weight in ddp.module.weights]).backward()
        for weight in ddp.module.weights:
            must_average(weight.grad, sum(whole_mean(world_size, 10 * step + m, *weight.shape) for m in range(3)), hook, step, largest=24)
    return handle.state_dict() if handle is not None else None


def uneven_inputs(
    rank: int, world_size: int, device: str, hook: str, batches: Sequence[int], **join_options: bool
) -> tuple[list[Tensor], Any]:
    """Parameters after training with Join, `batches[rank]` steps on each rank; and the hook's totals."""
    ddp, handle = wrap(Dot(torch.zeros(9), torch.zeros(4)), device, hook, bucket_cap_mb=2e-5)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1.0)
    with Join([ddp], **join_options):
        for step in range(batches[rank]):
            optimizer.zero_grad()
            ddp([whole(rank, step, 9), whole(rank, step, 4)]).backward()
            optimizer.step()
    return [weight.detach().cpu() for weight in ddp.module.weights], handle.state_dict() if handle is not None else None


def resumed_run(rank: int, world_size: int, device: str, hook: str, stop_at: int | None) -> tuple[list[Tensor], Any]:
    """Six steps of Adam in one go, or stopped and resumed from a file's bytes: parameters, and the hook's totals."""

    def make() -> tuple[DistributedDataParallel, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        ddp, handle = wrap(net, device, hook, bucket_cap_mb=2e-4)
        return ddp, torch.optim.Adam(ddp.parameters(), lr=0.01), handle

    ddp, optimizer, handle = make()
    for step in range(6):
        if step == stop_at:
            file = io.BytesIO()
            hook_state = handle.state_dict() if handle is not None else None
            torch.save({"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "hook": hook_state}, file)
            ddp, optimizer, handle = make()
            saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
            ddp.module.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            if handle is not None:
                handle.load_state_dict(saved["hook"])
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(10 * step + rank)
        scale = float("inf") if step == 1 and rank == 0 else 1.0  # a step to be counted before the stop
        loss = ddp(torch.randn(5, 8, generator=generator).to(device)).square().mean() * scale
        loss.backward()
        if step != 1:
            optimizer.step()
    return [weight.detach().cpu() for weight in ddp.parameters()], handle.state_dict() if handle is not None else None


def bucket_lists(rank: int, world_size: int, device: str, hook: str, options: dict[str, Any]) -> int | None:
    """All-reduces of the second step, of six parameters of half a MiB."""
    shape = (1 << 17,)
    ddp, handle = wrap(Dot(*(torch.zeros(shape) for _ in range(6))), device, hook, **options)
    for step in range(2):
        before = handle.stats().transfers if handle is not None else 0
        ddp.zero_grad()
        ddp([whole(rank, step + index, *shape) for index in range(6)]).backward()
        for index, weight in enumerate(ddp.module.weights):
            must_average(weight.grad, whole_mean(world_size, step + index, *shape), hook, options, step, index)
    return handle.stats().transfers - before if handle is not None else None


def pickled(rank: int, world_size: int, device: str, hook: str) -> None:
    """The hook's state through pickle, torch.save and JSON, the DDP model itself through pickle and deepcopy; all train on."""
    ddp, handle = wrap(Dot(torch.ones(6)), device, hook)

    def step(model: DistributedDataParallel, number: int) -> None:
        model.zero_grad()
        model([whole(rank, number, 6)]).backward()
        must_average(model.module.weights[0].grad, whole_mean(world_size, number, 6), hook, "pickled", number)

    for number in range(3):
        step(ddp, number)
    copies = {"pickle": pickle.loads(pickle.dumps(ddp)), "deepcopy": copy.deepcopy(ddp)}
    for name, restored in copies.items():
        again = HOOKS[hook](restored)  # a copy of a DDP model has no hook
        if handle is not None:
            saved = handle.state_dict()
            file = io.BytesIO()
            torch.save(saved, file)
            loaded = [pickle.loads(pickle.dumps(saved)), torch.load(io.BytesIO(file.getvalue()))]
            if not saved["feedback"]:  # tensors, where there are some
                loaded.append(json.loads(json.dumps(saved)))
            for state in loaded:
                assert str(state) == str(saved)
                again.load_state_dict(state)
            counted = ("steps", "transfers", "wire_bytes", "wire_scale")
            assert {key: again.state_dict()[key] for key in counted} == {key: saved[key] for key in counted}, name
        step(restored, 3)
        assert handle is None or again.stats().steps == 4
    step(ddp, 4)
    if handle is not None:
        with pytest.raises(TypeError, match=r"save its state_dict\(\) instead"):
            pickle.dumps(handle)
