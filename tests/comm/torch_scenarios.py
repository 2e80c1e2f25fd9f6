"""What one rank does when the hook is held to torch's own cases (test_torch_list*.py): two to four CPU ranks on gloo.

Most gradients are whole numbers of at most 8, chosen so that every division by 2 or 4 ranks and every sum fits the 8 bits of a
BF16 significand: their average is known exactly and every wire has to give exactly it.
"""

from __future__ import annotations

import copy
import faulthandler
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from gpualloc.comm import bf16_hook, fp16_hook, python_hook

UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # half an ulp, relative
HOOKS: dict[str, Callable[[DistributedDataParallel], Any]] = {
    "stock": lambda ddp: None,
    "fp32": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp32"),
    "fp16": lambda ddp: gpualloc.register_comm_hook(ddp, wire="fp16"),
    "bf16": lambda ddp: gpualloc.register_comm_hook(ddp, wire="bf16"),
    "fp16_callable": lambda ddp: ddp.register_comm_hook(None, fp16_hook),
    "bf16_callable": lambda ddp: ddp.register_comm_hook(None, bf16_hook),
    "fp16_python": lambda ddp: python_hook.register(ddp, "fp16"),  # register_comm_hook's stand-in for the compiled hook
}
EVERY_HOOK = tuple(name for name in HOOKS if name != "stock")
NARROW = tuple(name for name in EVERY_HOOK if name != "fp32")


def wire_of(hook: str) -> str:
    return hook.split("_")[0]


def with_each(rank: int, world_size: int, scenario: Callable[..., Any], hooks: Sequence[str], *args: Any) -> dict[str, Any]:
    """What `scenario(rank, world_size, hook, *args)` gives for each hook, in one process group."""
    return {hook: scenario(rank, world_size, hook, *args) for hook in hooks}


class Dot(nn.Module):
    """loss = sum(parameter * coefficient), so that a parameter's gradient is its coefficient."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight) for weight in weights)

    def forward(self, coefficients: list[Tensor]) -> Tensor:
        return torch.stack([(w * c).sum() for w, c in zip(self.weights, coefficients, strict=True)]).sum()


def wrap(model: nn.Module, hook: str, **options: Any) -> tuple[DistributedDataParallel, Any]:
    """(the DDP model, what registering the hook returned)."""
    ddp = DistributedDataParallel(model, **options)
    return ddp, HOOKS[hook](ddp)


def whole(rank: int, step: int, *shape: int) -> Tensor:
    """Whole numbers from -8 to 8, this rank's gradient of a step."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randint(-8, 9, shape, generator=generator).float()


def whole_mean(world_size: int, step: int, *shape: int) -> Tensor:
    return torch.stack([whole(rank, step, *shape) for rank in range(world_size)]).mean(0)


def must_equal(got: Tensor | None, want: Tensor, *where: Any) -> None:
    """Bit for bit, the message saying in which of the many cases of a scenario it was not."""
    if got is None or got.dtype != want.dtype or not torch.equal(got, want):
        raise AssertionError(f"{' '.join(map(str, where))}: got {got}, expected {want}")


# torch's test_ddp_hooks.py


def eight_and_its_square(rank: int, world_size: int, hook: str) -> Tensor:
    """The gradient of torch's own test: rank r's is 8 ** (1 + r) / 800, in 800 elements."""
    ddp, _ = wrap(Dot(torch.ones(40, 20)), hook)
    (ddp([torch.full((40, 20), 8.0 ** (1 + rank))]) / 800).backward()
    return ddp.module.weights[0].grad


def chained_futures(rank: int, world_size: int, hook: str) -> list[list[tuple[int, bool]]]:
    """(index, is_last) of each step's buckets; the user's hook goes on from ours: 2 * average + 1."""
    ours = {"fp16_callable": fp16_hook, "bf16_callable": bf16_hook}[hook]
    seen: list[list[tuple[int, bool]]] = []

    def user_hook(state: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        seen[-1].append((bucket.index(), bucket.is_last()))
        return ours(state, bucket).then(lambda done: done.value() * 2).then(lambda done: done.value() + 1)

    user_hook.__annotations__ = {}  # DDP compares them as objects; here they are strings
    ddp = DistributedDataParallel(Dot(*(torch.ones(500) for _ in range(5))), bucket_cap_mb=0.0015)
    ddp.register_comm_hook(dist.group.WORLD, user_hook)
    for step in range(3):  # buckets are rebuilt after the first
        seen.append([])
        ddp.zero_grad()
        ddp([whole(rank, step, 500)] * 5).backward()
        for weight in ddp.module.weights:
            must_equal(weight.grad, 2 * whole_mean(world_size, step, 500) + 1, hook, step)
    return seen


def only_one_registration(rank: int, world_size: int) -> None:
    from gpualloc.errors import GpuallocError, UsageError

    taken = "can only be called once"

    for first, hook in itertools.product(("compiled", "callable"), ("fp16", "bf16")):
        ddp = DistributedDataParallel(Dot(torch.ones(5)))
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
        value = torch.full((5,), 1 + 2.0**-12)  # 1 in FP16 and in BF16
        ddp([value]).backward()
        must_equal(ddp.module.weights[0].grad, torch.ones(5), first, hook)  # the first hook is still the one that runs


# torch's test_c10d_gloo.py, test_c10d_nccl.py and test_c10d_common.py


def sparse_gradients(rank: int, world_size: int, hook: str, grad_is_view: bool) -> Any:
    """An embedding with sparse gradients beside a dense layer; rows met by one rank, by both and, in step 2, by none of rank 1."""
    embedding, dense = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 2, bias=False)
    nn.init.ones_(dense.weight)
    nn.init.ones_(embedding.weight)
    ddp, handle = wrap(nn.Sequential(embedding, dense), hook, gradient_as_bucket_view=grad_is_view)
    for step in range(3):
        rows = torch.tensor([0, 4 + rank, 4 + rank, 9] if step < 2 or rank == 0 else [], dtype=torch.long)
        ddp.zero_grad()
        ddp(rows).sum().backward()
        counts = torch.tensor([0, 4, 4, 9]).bincount(minlength=10)
        other = torch.tensor([0, 5, 5, 9] if step < 2 else [], dtype=torch.long).bincount(minlength=10)
        mean = (counts + other).float() / world_size
        assert embedding.weight.grad.is_sparse
        must_equal(embedding.weight.grad.to_dense(), 2 * mean[:, None].expand(10, 3), hook, step)
        must_equal(dense.weight.grad, mean.sum().expand(2, 3), hook, step)
    return handle.state_dict() if handle is not None else None


def ignored_output(rank: int, world_size: int, hook: str, find_unused: bool) -> None:
    """Forward passes whose output nobody uses, then real steps (torch's test_ignored_output)."""
    ddp, _ = wrap(Dot(torch.ones(7), torch.ones(3)), hook, find_unused_parameters=find_unused)
    for step in range(8):
        output = ddp([whole(rank, step, 7), whole(rank, step, 3)])
        if step < 4:
            continue
        ddp.zero_grad()
        output.backward()
        for weight in ddp.module.weights:
            must_equal(weight.grad, whole_mean(world_size, step, *weight.shape), hook, find_unused, step)


def two_outputs_two_backwards(rank: int, world_size: int, hook: str) -> int | None:
    """Each output has its own parameters; the second backward completes the step."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Dot(torch.ones(6)), Dot(torch.ones(5))])

        def forward(self, coefficients: list[Tensor]) -> tuple[Tensor, ...]:
            return tuple(part([c]) for part, c in zip(self.parts, coefficients, strict=True))

    ddp, handle = wrap(Two(), hook, bucket_cap_mb=1e-5)
    for step in range(3):
        ddp.zero_grad()
        for output in ddp([whole(rank, step, 6), whole(rank, step, 5)]):
            output.backward()
        for weight in ddp.parameters():
            must_equal(weight.grad, whole_mean(world_size, step, *weight.shape), hook, step)
    return handle.state_dict()["steps"] if handle is not None else None


def two_synced_backwards_without_zeroing(rank: int, world_size: int, hook: str, grad_is_view: bool) -> None:
    """The second step's gradient is added to the average of the first."""
    ddp, _ = wrap(Dot(torch.ones(9)), hook, gradient_as_bucket_view=grad_is_view)
    for step in range(2):
        ddp([whole(rank, step, 9)]).backward()
    must_equal(ddp.module.weights[0].grad, whole_mean(world_size, 0, 9) + whole_mean(world_size, 1, 9), hook, grad_is_view)


def views_static_graph_and_zeroing(rank: int, world_size: int, hook: str) -> None:
    for view, static, to_none, checkpointed in itertools.product((False, True), repeat=4):
        weights = [torch.ones(5), torch.ones(3, 4), torch.ones(())]
        ddp, _ = wrap(Dot(*weights), hook, gradient_as_bucket_view=view, static_graph=static, bucket_cap_mb=3e-5)
        for step in range(3):
            ddp.zero_grad(set_to_none=to_none)
            local = [whole(rank, step, *weight.shape) for weight in weights]
            if checkpointed:  # activations computed again in the backward pass
                torch.utils.checkpoint.checkpoint(ddp, local, use_reentrant=False).backward()
            else:
                ddp(local).backward()
            for weight in ddp.module.weights:
                where = (hook, view, static, to_none, checkpointed, step)
                must_equal(weight.grad, whole_mean(world_size, step, *weight.shape), *where)


def shared_weight(rank: int, world_size: int, hook: str) -> None:
    """One parameter used by two layers, as torch's test_ddp_weight_sharing: 2 * (rank + 1) on each rank."""

    class Scaled(nn.Module):
        def __init__(self, weight: nn.Parameter, factor: float) -> None:
            super().__init__()
            self.weight, self.factor = weight, factor

        def forward(self, x: Tensor) -> Tensor:
            return x + self.weight * self.factor

    for to_none, view in itertools.product((False, True), repeat=2):
        weight = nn.Parameter(torch.randn(3001))
        ddp, _ = wrap(nn.Sequential(Scaled(weight, rank + 1), Scaled(weight, rank + 1)), hook, gradient_as_bucket_view=view)
        for _ in range(3):
            ddp.zero_grad(set_to_none=to_none)
            ddp(torch.ones(())).sum().backward()
            must_equal(weight.grad, torch.full((3001,), world_size + 1.0), hook, to_none, view)


def two_to_the_15(rank: int, world_size: int, hook: str) -> None:
    """2 ** 15 on every rank: the sum is inf in FP16, the average is not."""
    for dtype, view in itertools.product((torch.float16, torch.float32), (False, True)):
        ddp, _ = wrap(nn.Linear(1, 1, bias=False).to(dtype), hook, gradient_as_bucket_view=view)
        ddp(torch.full((1, 1), 2.0**15, dtype=dtype)).sum().backward()
        must_equal(ddp.module.weight.grad, torch.full((1, 1), 2.0**15, dtype=dtype), hook, dtype, view)


def group_rebuilt(rank: int, world_size: int, hook: str, folder: str) -> None:
    """The default process group is destroyed and made anew between two models, twice; the old model outlives its group."""
    store = dist.FileStore(f"{folder}/{hook}", world_size)
    for turn in range(3):
        group = dist.group.WORLD  # outlives model and handle: torch's reducer as the last owner of a gloo group can hang
        ddp, handle = wrap(Dot(torch.ones(11)), hook)
        for step in range(2):
            ddp.zero_grad()
            ddp([whole(rank, step, 11)]).backward()
            must_equal(ddp.module.weights[0].grad, whole_mean(world_size, step, 11), hook, turn, step)
        dist.barrier()
        dist.destroy_process_group()
        assert not hasattr(handle, "stats") or handle.stats().steps == 2
        del ddp, handle, group
        dist.init_process_group("gloo", store=dist.PrefixStore(str(turn), store), rank=rank, world_size=world_size)


def handle_outlives_group(rank: int, world_size: int, hook: str, folder: str) -> None:
    """The handle is the group's last owner while one of the group's threads runs a Python callback."""
    faulthandler.dump_traceback_later(3, exit=True)  # where it hangs
    ddp, handle = wrap(Dot(torch.ones(3)), hook)
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


def mixed_dtypes(rank: int, world_size: int, hook: str) -> tuple[dict[torch.dtype, Tensor], Any]:
    """One model of six types; all ranks have the gradient 1 + 2 ** -12, which only FP16 and BF16 cannot hold."""
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(nn.Parameter(torch.ones(6, dtype=dtype)) for dtype in dtypes)

        def forward(self, value: float) -> Tensor:
            return torch.stack([(w * torch.full_like(w, value)).sum().real.double() for w in self.weights]).sum()

    ddp, handle = wrap(Mixed(), hook)
    for _ in range(2):
        before = handle.stats().wire_bytes if handle is not None else 0
        ddp.zero_grad()
        ddp(1 + 2.0**-12).backward()
    grads = {weight.dtype: weight.grad for weight in ddp.module.weights}
    return grads, handle.stats().wire_bytes - before if handle is not None else None


def layouts(rank: int, world_size: int, hook: str) -> None:
    """A convolutional net in NCHW, NHWC and both x dtypes x bucket sizes x 3 steps, beside the same net without DDP."""
    formats = {
        "nchw": (torch.contiguous_format, torch.contiguous_format),
        "nhwc": (torch.channels_last, torch.channels_last),
        "mixed": (torch.channels_last, torch.contiguous_format),
    }
    for layout, dtype, cap, view in itertools.product(formats, (torch.float32, torch.float64, torch.bfloat16), (5e-4, 25), (False, True)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 2)).to(dtype)
        first, last = formats[layout]
        net[0].to(memory_format=first)
        net[2].to(memory_format=last)
        net[4].to(memory_format=first)
        alone = copy.deepcopy(net)
        ddp, _ = wrap(net, hook, bucket_cap_mb=cap, gradient_as_bucket_view=view)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for step in range(3):
            alone.load_state_dict(net.state_dict())
            local = [_conv_gradients(alone, r, step, first) for r in range(world_size)]
            optimizer.zero_grad()
            ddp(_images(rank, step, dtype, first)).square().mean().backward()
            for index, weight in enumerate(net.parameters()):
                grads = torch.stack([one[index].double() for one in local])
                limit = _error_bound(grads, dtype, wire_of(hook))
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
    net(_images(rank, step, next(net.parameters()).dtype, memory_format)).square().mean().backward()
    return [weight.grad for weight in net.parameters()]


def _error_bound(grads: Tensor, dtype: torch.dtype, wire: str) -> Tensor:
    """[world_size, ...] local gradients: W roundings of at most half an ulp of their mean magnitude (see test_hooks.py)."""
    unit = {torch.float64: 2.0**-53, torch.bfloat16: UNIT["bf16"], torch.float32: UNIT.get(wire, 2.0**-24)}[dtype]
    subnormal = 2.0**-25 if dtype == torch.float32 and wire == "fp16" else 0.0
    return len(grads) * (unit * grads.abs().mean(0) + subnormal)


class GivenGradient(torch.autograd.Function):
    """weight.sum(), with a gradient of any strides."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return weight.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def strides(rank: int, world_size: int, hook: str) -> None:
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
                    "holes": torch.ones(7, 10)[:, ::2],
                }
            )

        def forward(self, gradients: dict[str, Tensor]) -> Tensor:
            return torch.stack([GivenGradient.apply(w, gradients[name]) for name, w in self.weights.items()]).sum()

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
        ddp, _ = wrap(Given(), hook, gradient_as_bucket_view=view, bucket_cap_mb=3e-4)
        for step in range(3):
            ddp.zero_grad()
            ddp(gradients(rank, step)).backward()
            everyones = [gradients(r, step) for r in range(world_size)]
            for name, weight in ddp.module.weights.items():
                must_equal(weight.grad, torch.stack([one[name] for one in everyones]).mean(0), hook, view, step, name)


# torch's distributed_test.py


def optimizer_run(rank: int, world_size: int, hook: str, optimizer_name: str, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters after `steps` of positive gradients, and how far each travelled but for weight decay, in FP64."""
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    }[optimizer_name]
    ddp, _ = wrap(Dot(torch.ones(300), torch.ones(7, 11)), hook, bucket_cap_mb=5e-4)
    optimizer = make(ddp.parameters())
    weights = list(ddp.module.weights)
    keep = 1 - 0.01 * 0.1 if optimizer_name == "adamw" else 1.0
    travelled = [torch.zeros(weight.shape, dtype=torch.float64) for weight in weights]
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        optimizer.zero_grad()
        ddp([torch.exp2(8 * torch.rand(weight.shape, generator=generator) - 4) for weight in weights]).backward()
        before = [weight.detach().double() for weight in weights]
        optimizer.step()
        for total, old, new in zip(travelled, before, weights, strict=True):
            total += (new.detach().double() - keep * old).abs()
    return [weight.detach() for weight in weights], travelled


def parity_of_100_steps(rank: int, world_size: int, hook: str) -> None:
    """The input is the rank, so every weight's gradient is the mean of the ranks; beside DDP without a hook."""
    (plain, _), (hooked, _) = wrap(nn.Linear(1, 5), "stock"), wrap(nn.Linear(1, 5), hook)
    for step in range(100):
        for ddp in (plain, hooked):
            ddp.zero_grad(set_to_none=step % 2 == 0)
            ddp(torch.full((1, 1), float(rank))).sum().backward()
        must_equal(hooked.module.weight.grad, torch.full((5, 1), (world_size - 1) / 2), hook, step)
        must_equal(hooked.module.weight.grad, plain.module.weight.grad, hook, step)
        must_equal(hooked.module.bias.grad, torch.ones(5), hook, step)


def accumulate_three(rank: int, world_size: int, hook: str) -> Any:
    """Two micro-batches under no_sync and a synchronised one, from the very first step; then the gradient is averaged once."""
    ddp, handle = wrap(Dot(torch.ones(13), torch.ones(2)), hook, bucket_cap_mb=3e-5)
    for step in range(3):
        ddp.zero_grad()
        with ddp.no_sync():
            for micro in (0, 1):
                local = [whole(rank, 10 * step + micro, *weight.shape) for weight in ddp.module.weights]
                ddp(local).backward()
                must_equal(ddp.module.weights[0].grad, sum(whole(rank, 10 * step + m, 13) for m in range(micro + 1)), hook, "local")
        ddp([whole(rank, 10 * step + 2, *weight.shape) for weight in ddp.module.weights]).backward()
        for weight in ddp.module.weights:
            must_equal(weight.grad, sum(whole_mean(world_size, 10 * step + m, *weight.shape) for m in range(3)), hook, step)
    return handle.state_dict() if handle is not None else None


def uneven_inputs(rank: int, world_size: int, hook: str, batches: Sequence[int], **join_options: bool) -> tuple[list[Tensor], Any]:
    """Parameters after training with Join, `batches[rank]` steps on each rank; and the hook's totals."""
    from torch.distributed.algorithms.join import Join

    ddp, handle = wrap(Dot(torch.zeros(9), torch.zeros(4)), hook, bucket_cap_mb=2e-5)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1.0)
    with Join([ddp], **join_options):
        for step in range(batches[rank]):
            optimizer.zero_grad()
            ddp([whole(rank, step, 9), whole(rank, step, 4)]).backward()
            optimizer.step()
    return [weight.detach() for weight in ddp.module.weights], handle.state_dict() if handle is not None else None


def resumed_run(rank: int, world_size: int, hook: str, stop_at: int | None) -> tuple[list[Tensor], Any]:
    """Six steps of Adam in one go, or stopped and resumed from a file's bytes: parameters, and the hook's totals."""
    import io

    def make() -> tuple[DistributedDataParallel, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        ddp, handle = wrap(net, hook, bucket_cap_mb=2e-4)
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
        scale = float("inf") if step == 1 and rank == 0 and handle is not None else 1.0  # a step to be counted before the stop
        loss = ddp(torch.randn(5, 8, generator=generator)).square().mean() * scale
        loss.backward()
        if step != 1:
            optimizer.step()
    return [weight.detach() for weight in ddp.parameters()], handle.state_dict() if handle is not None else None


def bucket_lists(rank: int, world_size: int, hook: str, options: dict[str, Any]) -> int | None:
    """All-reduces of the second step, of six parameters of half a MiB."""
    shape = (1 << 17,)
    ddp, handle = wrap(Dot(*(torch.zeros(shape) for _ in range(6))), hook, **options)
    for step in range(2):
        before = handle.stats().buckets if handle is not None else 0
        ddp.zero_grad()
        ddp([whole(rank, step + index, *shape) for index in range(6)]).backward()
        for index, weight in enumerate(ddp.module.weights):
            must_equal(weight.grad, whole_mean(world_size, step + index, *shape), hook, options, step, index)
    return handle.stats().buckets - before if handle is not None else None
