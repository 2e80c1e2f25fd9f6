"""Each detail of a case changes what runs, and only that."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import nn

from gpualloc.bench import measure
from gpualloc.bench.measure import Trainer, measure_rank
from gpualloc.bench.preparation import prepare_model
from gpualloc.records import BenchCase
from gpualloc.workloads import find_blocks, open_batches, synthetic, unsupported_reason
from tests.bench.cases import tiny_case
from tests.ranks import run_ranks

CPU = torch.device("cpu")
IMAGE = tiny_case(strategy="single", world_size=1)
LLAMA = replace(IMAGE, workload="llm", model="llama_tiny", image_size_px=None, sequence_length=16, per_device_batch_size=4)


def train(case: BenchCase, *, num_steps: int = 2, batches: Any = None) -> tuple[list[float], Trainer]:
    trainer = Trainer(case, rank=0, device=CPU)
    batches = batches or open_batches(case, rank=0, pin_memory=False)
    return [trainer.step(batches).item() for _ in range(num_steps)], trainer


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_is_the_format_of_weights_and_images_in_the_forward_pass(channels_last: bool) -> None:
    trainer = Trainer(replace(IMAGE, channels_last=channels_last), rank=0, device=CPU)
    seen = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in (inputs[0], module.get_parameter("weight"), output)])

    convolution = next(module for module in trainer.wrapped.model.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(look)
    trainer.step(open_batches(IMAGE, rank=0, pin_memory=False))
    assert seen == [[channels_last] * 3]


def test_channels_last_trains_to_the_same_loss() -> None:
    assert train(replace(IMAGE, channels_last=True))[0] == pytest.approx(train(IMAGE)[0], rel=1e-3)


def test_accumulated_batches_are_one_large_batch() -> None:
    """A Llama, since batch normalisation would see the parts; SGD, whose step is linear in the gradient."""
    large = replace(LLAMA, optimizer="sgd", per_device_batch_size=12, precision="fp64")
    inputs, targets = next(open_batches(large, rank=0, pin_memory=False))
    parts = list(zip(inputs.split(4), targets.split(4), strict=True))
    accumulated = replace(large, per_device_batch_size=4, grad_accum_steps=3)
    (large_loss,), large_trainer = train(large, num_steps=1, batches=iter([(inputs, targets)]))
    (loss,), trainer = train(accumulated, num_steps=1, batches=iter(parts))
    assert loss == pytest.approx(large_loss, rel=1e-12)
    for parameter, expected in zip(trainer.wrapped.model.parameters(), large_trainer.wrapped.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-12)


def count_exchanges(rank: int, world_size: int) -> tuple[int, int, list[float]]:
    """Wire bytes of one step with and without accumulation, and sums of the parameters after both."""
    base = replace(LLAMA, strategy="ddp", hook="gpualloc_fp32", world_size=world_size)
    counted: list[int] = []
    sums: list[float] = []
    for num_batches in (1, 3):
        case = replace(base, grad_accum_steps=num_batches)
        trainer, batches = Trainer(case, rank=rank, device=CPU), open_batches(case, rank=rank, pin_memory=False)
        trainer.step(batches)
        assert trainer.wrapped.handle is not None
        before = trainer.wrapped.handle.stats()
        trainer.step(batches)
        counted.append(trainer.wrapped.handle.stats().wire_bytes - before.wire_bytes)
        sums += [parameter.sum().item() for parameter in trainer.wrapped.model.parameters()]
    return counted[0], counted[1], sums


def test_accumulation_exchanges_once_a_step() -> None:
    (once, accumulated, sums), (_, _, other_sums) = run_ranks(count_exchanges, 2)
    assert accumulated == once > 0
    assert sums == other_sums


def buffers_sent(rank: int, world_size: int) -> list[int]:
    """Broadcasts of batch normalisation's buffers in a step of two batches, alone and inside no_sync."""
    case = tiny_case(world_size=world_size, grad_accum_steps=2, per_device_batch_size=2, image_size_px=64)
    trainer, batches = Trainer(case, rank=rank, device=CPU), open_batches(case, rank=rank, pin_memory=False)
    trainer.step(batches)
    model: Any = trainer.wrapped.model
    sent: list[int] = []
    real = model._sync_buffers
    model._sync_buffers = lambda: (sent.append(1), real())
    trainer.step(batches)
    counts = [len(sent)]
    with trainer.wrapped.no_sync():
        trainer.step(batches)
    return [*counts, len(sent) - counts[0]]


def test_compute_steps_of_accumulation_send_nothing() -> None:
    assert run_ranks(buffers_sent, 2) == [[1, 0], [1, 0]]


@pytest.mark.parametrize("case", [LLAMA, replace(IMAGE, model="resnet50", per_device_batch_size=4)], ids=lambda case: case.model)
def test_checkpointing_recomputes_and_keeps_less(case: BenchCase) -> None:
    saved, forwards, gradients, losses = [], [], [], []
    for checkpointing in (False, True):
        trainer = Trainer(replace(case, activation_checkpointing=checkpointing, precision="fp64"), rank=0, device=CPU)
        calls, kept = [0], []
        first = next(iter(find_blocks(trainer.wrapped.model).values()))
        inner = next(module for module in first.modules() if next(module.children(), None) is None)
        inner.register_forward_hook(lambda *args, calls=calls: calls.__setitem__(0, calls[0] + 1))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: (kept.append(tensor.nbytes), tensor)[1], lambda t: t):
            losses.append(trainer.step(open_batches(case, rank=0, pin_memory=False)).item())
        forwards.append(calls[0])
        saved.append(sum(kept))
        gradients.append({name: parameter.grad for name, parameter in trainer.wrapped.model.named_parameters()})
    assert forwards == [1, 2]
    assert saved[1] < 0.7 * saved[0]
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


def make_tiny(case: BenchCase) -> Any:
    """Two blocks, so that a compilation takes seconds."""
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)]
    make_batch = lambda generator: 2 * (torch.randn(case.per_device_batch_size, 8, generator=generator),)  # noqa: E731
    return nn.Sequential(*blocks), make_batch, nn.MSELoss()


TINY = replace(IMAGE, model=f"{__name__}:make_tiny")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_models_train_alike_under_their_own_names(checkpointing: bool) -> None:
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    with torch._inductor.config.patch(compile_threads=1):
        losses, trainer = train(replace(TINY, compile=True, activation_checkpointing=checkpointing), num_steps=3)
    assert graphs["unique_graphs"] == before + 1
    eager_losses, eager = train(TINY, num_steps=3)
    assert losses == pytest.approx(eager_losses, rel=1e-4)
    assert list(trainer.wrapped.model.state_dict()) == list(eager.wrapped.model.state_dict())
    torch._dynamo.reset()


def compile_under_ddp(rank: int, world_size: int) -> tuple[int, int, list[float]]:
    """Graphs compiled in two steps, and in two more under no_sync as well; sums of the parameters."""
    case = replace(TINY, strategy="ddp", world_size=world_size, compile=True)
    graphs = torch._dynamo.utils.counters["stats"]
    trainer, batches = Trainer(case, rank=rank, device=CPU), open_batches(case, rank=rank, pin_memory=False)
    with torch._inductor.config.patch(compile_threads=1):
        for _ in range(2):
            trainer.step(batches)
        sums = [parameter.sum().item() for parameter in trainer.wrapped.model.parameters()]
        compiled = graphs["unique_graphs"]
        with trainer.wrapped.no_sync():
            for _ in range(2):
                trainer.step(batches)
    return compiled, graphs["unique_graphs"], sums


def test_compute_steps_compile_nothing_anew() -> None:
    results = run_ranks(compile_under_ddp, 2)
    for compiled, in_the_end, sums in results:
        assert compiled == in_the_end == 1
        assert sums == results[0][2]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("case", [IMAGE, replace(IMAGE, data="digits"), LLAMA], ids=lambda case: f"{case.model}-{case.data}")
def test_reading_in_workers_trains_the_same(case: BenchCase, num_workers: int) -> None:
    before = set(psutil.Process().children())
    batches = open_batches(replace(case, num_workers=num_workers), rank=0, pin_memory=False)
    losses, _ = train(case, batches=batches)
    assert len(set(psutil.Process().children()) - before) == num_workers
    assert losses == train(case)[0]


def test_steps_that_use_up_what_readers_got_ready_are_as_many_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    real_step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batches: (steps.append(1), real_step(self, batches))[1])
    monkeypatch.setattr(measure.RankWatch, "stop", lambda watch: [])  # a disturbed repeat is made again
    case = replace(LLAMA, num_workers=2, grad_accum_steps=3, num_warmup_steps=0, num_steps=1, num_repeats=1)
    measure_rank(case, rank=0, device=CPU)
    assert len(steps) == 2 + 1  # four batches ahead are two steps of three


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_rate_of_readers_is_measured_alone_and_of_all_cores(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    """A reader takes 0.1 s for a batch of 8, and what it kept ready is not counted; of three cores one reads."""
    real_get = synthetic._Pool.__getitem__
    monkeypatch.setattr(synthetic._Pool, "__getitem__", lambda pool, number: (time.sleep(0.1), real_get(pool, number))[1])
    monkeypatch.setattr(measure, "count_cores", lambda: 3)
    report = measure_rank(replace(IMAGE, num_workers=num_workers, num_warmup_steps=0, num_steps=3), rank=0, device=CPU)
    if num_workers == 0:
        assert report.input_samples_per_s is None
        return
    assert 0.5 * 3 * 80 < (report.input_samples_per_s or 0) <= 3 * 80


def test_pinned_memory_and_blocking_copies_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    waits: list[Any] = []
    real_open, real_to = open_batches, torch.Tensor.to
    monkeypatch.setattr(
        measure,
        "open_batches",
        lambda case, *, rank, pin_memory: (pinned.append(pin_memory), real_open(case, rank=rank, pin_memory=False))[1],
    )
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: (waits.append(k.get("non_blocking")), real_to(self, *a, **k))[1])
    measure_rank(replace(LLAMA, pin_memory=True, non_blocking=False, num_warmup_steps=0, num_steps=1), rank=0, device=CPU)
    assert pinned == [True]
    assert False in waits
    assert True not in waits


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [None, 0, 1])
@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("case", [IMAGE, replace(IMAGE, data="digits"), LLAMA], ids=lambda case: f"{case.model}-{case.data}")
def test_batches_are_pinned_where_asked(case: BenchCase, pin_memory: bool, num_workers: int | None) -> None:
    batches = open_batches(replace(case, device="cuda", num_workers=num_workers), rank=0, pin_memory=pin_memory)
    for inputs, targets in itertools.islice(batches, 2):
        assert (inputs.is_pinned(), targets.is_pinned()) == (pin_memory, pin_memory)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"channels_last": True, "num_workers": 2, "activation_checkpointing": True, "compile": True}, None),
        ({"precision": "fp8"}, "fp8 is for Linear layers and mobilenet_v2 computes with convolutions"),
        ({"tuning": "lora"}, "LoRA adapts Linear layers and mobilenet_v2 computes with convolutions"),
        ({"pin_memory": True}, "pinned memory is for copies to a GPU"),
        ({"pin_memory": True, "device": "cuda"}, None),
        ({"model": "vit_b16", "precision": "fp8"}, None),
        ({"model": "vit_b16", "precision": "fp8", "tuning": "lora"}, "fp8 narrows the weights that are trained"),
    ],
)
def test_what_a_model_cannot_do_has_a_reason(changes: dict[str, Any], reason: str | None) -> None:
    found = unsupported_reason(replace(IMAGE, **changes))
    assert (found is None) if reason is None else str(found).startswith(reason)


def test_language_models_have_no_memory_format() -> None:
    assert "is a memory format of images" in str(unsupported_reason(replace(LLAMA, channels_last=True)))


def test_a_prepared_model_keeps_its_names() -> None:
    plain = prepare_model(LLAMA, CPU)
    prepared = prepare_model(replace(LLAMA, activation_checkpointing=True, compile=True), CPU)
    assert [name for name, _ in prepared.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert type(prepared) is type(plain)
