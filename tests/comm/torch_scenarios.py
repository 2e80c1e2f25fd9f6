"""What one rank does when the hook is held to torch's own test_ddp_hooks.py, test_c10d_gloo.py and test_c10d_nccl.py."""

from __future__ import annotations

import copy
import faulthandler
import inspect
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from gpualloc.comm import bf16_hook, fp16_hook
from tests.comm.hook_table import HOOKS, Dot, error_bound, must_average, must_equal, whole, whole_mean, wire_of, wrap

# torch's test_ddp_hooks.py


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


# torch's test_c10d_gloo.py, test_c10d_nccl.py and test_c10d_common.py


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
