"""What one rank does when the hook is held to torch's own test_c10d_*.py: steps of every kind, and groups that come and go."""

from __future__ import annotations

import faulthandler
import itertools
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.comm.hook_table import Dot, must_average, whole, whole_mean, wrap


def sparse_gradients(rank: int, world_size: int, device: str, hook: str, grad_is_view: bool) -> Any:
    """An embedding with sparse gradients beside a dense layer; rows met by one rank, by both and, in step 2, by none of rank 1."""
    embedding, dense = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 2, bias=False)
    nn.init.ones_(dense.weight)
    nn.init.ones_(embedding.weight)
    ddp, handle = wrap(nn.Sequential(embedding, dense), device, hook, gradient_as_bucket_view=grad_is_view)
    for step in range(3):
        rows = torch.tensor([0, 4 + rank, 4 + rank, 9] if step < 2 or rank == 0 else [], dtype=torch.long, device=device)
        ddp.zero_grad()
        ddp(rows).sum().backward()
        counts = torch.tensor([0, 4, 4, 9]).bincount(minlength=10)
        other = torch.tensor([0, 5, 5, 9] if step < 2 else [], dtype=torch.long).bincount(minlength=10)
        mean = (counts + other).float() / world_size
        assert embedding.weight.grad.is_sparse
        must_average(embedding.weight.grad.to_dense(), 2 * mean[:, None].expand(10, 3), hook, step)
        must_average(dense.weight.grad, mean.sum().expand(2, 3), hook, step)
    return handle.state_dict() if handle is not None else None


def ignored_output(rank: int, world_size: int, device: str, hook: str, find_unused: bool) -> None:
    """Forward passes whose output nobody uses, then real steps (torch's test_ignored_output)."""
    ddp, _ = wrap(Dot(torch.ones(7), torch.ones(3)), device, hook, find_unused_parameters=find_unused)
    for step in range(8):
        output = ddp([whole(rank, step, 7), whole(rank, step, 3)])
        if step < 4:
            continue
        ddp.zero_grad()
        output.backward()
        for weight in ddp.module.weights:
            must_average(weight.grad, whole_mean(world_size, step, *weight.shape), hook, find_unused, step)


def two_outputs_two_backwards(rank: int, world_size: int, device: str, hook: str) -> int | None:
    """Each output has its own parameters; the second backward completes the step."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Dot(torch.ones(6)), Dot(torch.ones(5))])

        def forward(self, coefficients: list[Tensor]) -> tuple[Tensor, ...]:
            return tuple(part([c]) for part, c in zip(self.parts, coefficients, strict=True))

    ddp, handle = wrap(Two(), device, hook, bucket_cap_mb=1e-5)
    for step in range(3):
        ddp.zero_grad()
        for output in ddp([whole(rank, step, 6), whole(rank, step, 5)]):
            output.backward()
        for weight in ddp.parameters():
            must_average(weight.grad, whole_mean(world_size, step, *weight.shape), hook, step)
    return handle.state_dict()["steps"] if handle is not None else None


def two_synced_backwards_without_zeroing(rank: int, world_size: int, device: str, hook: str, grad_is_view: bool) -> None:
    """The second step's gradient is added to the average of the first."""
    ddp, _ = wrap(Dot(torch.ones(9)), device, hook, gradient_as_bucket_view=grad_is_view)
    for step in range(2):
        ddp([whole(rank, step, 9)]).backward()
    must_average(ddp.module.weights[0].grad, whole_mean(world_size, 0, 9) + whole_mean(world_size, 1, 9), hook, grad_is_view, largest=16)


def views_static_graph_and_zeroing(rank: int, world_size: int, device: str, hook: str) -> None:
    for view, static, to_none, checkpointed in itertools.product((False, True), repeat=4):
        weights = [torch.ones(5), torch.ones(3, 4), torch.ones(())]
        ddp, _ = wrap(Dot(*weights), device, hook, gradient_as_bucket_view=view, static_graph=static, bucket_cap_mb=3e-5)
        for step in range(3):
            ddp.zero_grad(set_to_none=to_none)
            local = [whole(rank, step, *weight.shape) for weight in weights]
            if checkpointed:  # activations computed again in the backward pass
                torch.utils.checkpoint.checkpoint(ddp, local, use_reentrant=False).backward()
            else:
                ddp(local).backward()
            for weight in ddp.module.weights:
                where = (hook, view, static, to_none, checkpointed, step)
                must_average(weight.grad, whole_mean(world_size, step, *weight.shape), *where)


def shared_weight(rank: int, world_size: int, device: str, hook: str) -> None:
    """One parameter used by two layers, as torch's test_ddp_weight_sharing: 2 * (rank + 1) on each rank."""

    class Scaled(nn.Module):
        def __init__(self, weight: nn.Parameter, factor: float) -> None:
            super().__init__()
            self.weight, self.factor = weight, factor

        def forward(self, x: Tensor) -> Tensor:
            return x + self.weight * self.factor

    for to_none, view in itertools.product((False, True), repeat=2):
        weight = nn.Parameter(torch.randn(3001, device=device))
        ddp, _ = wrap(nn.Sequential(Scaled(weight, rank + 1), Scaled(weight, rank + 1)), device, hook, gradient_as_bucket_view=view)
        for _ in range(3):
            ddp.zero_grad(set_to_none=to_none)
            ddp(torch.ones((), device=device)).sum().backward()
            must_average(weight.grad, torch.full((3001,), world_size + 1.0), hook, to_none, view)


def two_to_the_15(rank: int, world_size: int, device: str, hook: str) -> None:
    """2 ** 15 on every rank: the sum is inf in FP16, the average is not."""
    for dtype, view in itertools.product((torch.float16, torch.float32), (False, True)):
        ddp, _ = wrap(nn.Linear(1, 1, bias=False).to(dtype), device, hook, gradient_as_bucket_view=view)
        ddp(torch.full((1, 1), 2.0**15, dtype=dtype, device=device)).sum().backward()
        must_average(ddp.module.weight.grad, torch.full((1, 1), 2.0**15, dtype=dtype), hook, dtype, view, largest=2.0**15)


def group_rebuilt(rank: int, world_size: int, device: str, hook: str, folder: str) -> None:
    """The default process group is destroyed and made anew between two models, twice; the old model outlives its group."""
    store = dist.FileStore(f"{folder}/{hook}", world_size)
    for turn in range(3):
        group = dist.group.WORLD  # outlives model and handle: torch's reducer as the last owner of a gloo group can hang
        ddp, handle = wrap(Dot(torch.ones(11)), device, hook)
        for step in range(2):
            ddp.zero_grad()
            ddp([whole(rank, step, 11)]).backward()
            must_average(ddp.module.weights[0].grad, whole_mean(world_size, step, 11), hook, turn, step)
        dist.barrier()
        dist.destroy_process_group()
        assert not hasattr(handle, "stats") or handle.stats().steps == 2
        del ddp, handle, group
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore(str(turn), store), rank=rank, world_size=world_size)
    dist.barrier()  # a rank that ended would take the others' connections along


def handle_outlives_group(rank: int, world_size: int, device: str, hook: str, folder: str) -> None:
    """The handle is the group's last owner while one of the group's threads runs a Python callback."""
    faulthandler.dump_traceback_later(3, exit=True)  # where it hangs
    ddp, handle = wrap(Dot(torch.ones(3)), device, hook)
    ddp([torch.ones(3)]).backward()
    entered = threading.Event()

    def callback(done: torch.futures.Future[Any]) -> None:
        entered.set()
        time.sleep(0.3)

    time.sleep(0.3 * rank)  # so that rank 0's callback is there before its all-reduce ends, and runs in the group's thread
    busy = dist.all_reduce(torch.ones(1), async_op=True).get_future().then(callback)
    entered.wait()
    del ddp
    dist.destroy_process_group()
    del handle  # its destructor waits for the group's threads, one of them for the interpreter
    faulthandler.cancel_dump_traceback_later()
    busy.wait()
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/{hook}", 2), rank=rank, world_size=2)
