"""What one rank does when the hook is held to torch's own test_ddp_hooks.py: known numbers, futures, registration and its refusals."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from gpualloc.comm import bf16_hook, fp16_hook
from tests.comm.hook_table import HOOKS, Dot, must_average, must_equal, whole, whole_mean, wrap


def eight_and_its_square(rank: int, world_size: int, device: str, hook: str) -> Tensor:
    """The gradient of torch's own test, in the second step: rank r's is 8 ** (1 + r) / 800, in 800 elements."""
    ddp, _ = wrap(Dot(torch.ones(40, 20)), device, hook)
    for _ in range(2):
        ddp.zero_grad()
        (ddp([torch.full((40, 20), 8.0 ** (1 + rank))]) / 800).backward()
    return ddp.module.weights[0].grad.cpu()


def chained_futures(rank: int, world_size: int, device: str, hook: str) -> list[list[tuple[int, bool]]]:
    """(index, is_last) of each step's buckets; the user's hook goes on from ours: 2 * average + 1."""
    ours = {"fp16_callable": fp16_hook, "bf16_callable": bf16_hook}[hook]
    seen: list[list[tuple[int, bool]]] = []

    def user_hook(state: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        seen[-1].append((bucket.index(), bucket.is_last()))
        return ours(state, bucket).then(lambda done: done.value() * 2).then(lambda done: done.value() + 1)

    user_hook.__annotations__ = {}  # DDP compares them as objects; here they are strings
    ddp = DistributedDataParallel(Dot(*(torch.ones(500) for _ in range(5))).to(device), bucket_cap_mb=0.0015)
    ddp.register_comm_hook(dist.group.WORLD, user_hook)
    for step in range(3):  # buckets are rebuilt after the first
        seen.append([])
        ddp.zero_grad()
        ddp([whole(rank, step, 500)] * 5).backward()
        for weight in ddp.module.weights:
            must_average(weight.grad, 2 * whole_mean(world_size, step, 500) + 1, hook, step, largest=16)
    return seen


def only_one_registration(rank: int, world_size: int, device: str) -> None:
    from gpualloc.errors import GpuallocError, UsageError

    taken = "can only be called once"

    for first, hook in itertools.product(("compiled", "callable"), ("fp16", "bf16")):
        ddp = DistributedDataParallel(Dot(torch.ones(5)).to(device))
        with pytest.raises(UsageError, match="'FP16' is not one of"):
            gpualloc.register_comm_hook(ddp, wire="FP16")
        HOOKS[hook if first == "compiled" else f"{hook}_callable"](ddp)  # a refused wire leaves the place free
        if first == "compiled":
            assert ddp._get_ddp_logging_data()["comm_hook"] == f"gpualloc_{hook}"
        with pytest.raises(GpuallocError, match="has a communication hook already"):
            gpualloc.register_comm_hook(ddp)
        with pytest.raises(RuntimeError, match=taken):
            ddp.register_comm_hook(None, fp16_hook)
        with pytest.raises(RuntimeError, match=taken):
            ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
        for _ in range(2):
            ddp.zero_grad()
            ddp([torch.full((5,), 1 + 2.0**-12)]).backward()  # 1 in FP16 and in BF16
        must_equal(ddp.module.weights[0].grad, torch.ones(5), first, hook)  # the first hook is still the one that runs


def refused_callables(rank: int, world_size: int, device: str) -> None:
    """What DDP refuses at registration leaves the place free for ours, whose annotations are the objects it asks for."""
    for ours in (fp16_hook, bf16_hook):
        signature = inspect.signature(ours)
        assert signature.parameters["bucket"].annotation is dist.GradBucket
        assert signature.return_annotation == torch.futures.Future[Tensor]

    def wrong_bucket(state: Any, bucket: Any) -> Any: ...
    def wrong_return(state: Any, bucket: Any) -> Any: ...

    wrong_bucket.__annotations__ = {"bucket": int}
    wrong_return.__annotations__ = {"return": Tensor}
    ddp = DistributedDataParallel(Dot(torch.ones(5)).to(device))
    for hook, error, words in (
        (1, TypeError, "must be callable"),
        (wrong_bucket, ValueError, "bucket annotation should be dist.GradBucket"),
        (wrong_return, ValueError, "return annotation should be torch.futures.Future"),
    ):
        with pytest.raises(error, match=words):
            ddp.register_comm_hook(None, hook)
    gpualloc.register_comm_hook(ddp, wire="fp16")
    ddp([whole(rank, 0, 5)]).backward()
    must_equal(ddp.module.weights[0].grad, whole_mean(world_size, 0, 5), "after the refusals")


def wrong_returns_around_ours(rank: int, world_size: int, device: str) -> None:
    """A user's hook around ours that returns or raises what it must not: an error in backward, and the next model is not touched."""

    def users_own(_: Any) -> Any:
        raise ValueError("the user's own error")

    around: dict[str, Callable[[torch.futures.Future[Tensor]], Any]] = {
        "must return a torch.futures.Future object, but got torch.Tensor": lambda averaged: averaged.wait(),
        "Unable to cast .* to Tensor": lambda averaged: averaged.then(lambda done: [done.value()]),
        "ValueError: the user's own error": lambda averaged: averaged.then(users_own),
        "^the user's own error": users_own,
    }
    for words, wrong in around.items():

        def hook(state: Any, bucket: Any, wrong: Callable[..., Any] = wrong) -> Any:
            return wrong(fp16_hook(state, bucket))

        hook.__annotations__ = {}
        ddp = DistributedDataParallel(Dot(torch.ones(5)).to(device))
        ddp.register_comm_hook(None, hook)
        with pytest.raises((RuntimeError, ValueError), match=words):
            ddp([torch.ones(5)]).backward()
        ddp, _ = wrap(Dot(torch.ones(5)), device, "fp16")
        ddp([whole(rank, 0, 5)]).backward()
        must_equal(ddp.module.weights[0].grad, whole_mean(world_size, 0, 5), "after", words)
