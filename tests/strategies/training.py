"""Training with a strategy on some ranks, and the same training in one process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpualloc.records import BenchCase
from gpualloc.strategies import data_of, data_ranks, wrap
from gpualloc.strategies.layout import num_microbatches
from gpualloc.workloads.gpt import Gpt
from gpualloc.workloads.llama import Llama
from gpualloc.workloads.models import GptConfig, LlamaConfig
from gpualloc.workloads.parts import Part
from tests.bench.cases import tiny_case

NUM_STEPS = 3
LEARNING_RATE = 0.1
_BATCH_SIZE = 4  # per data rank
_VOCABULARY = 11  # odd, so that no two ranks have equal shares of it

Outcome = tuple[list[float | None], dict[str, Tensor]]  # loss of each step, whole parameters of this rank by name


def gpt_case(**changes: Any) -> BenchCase:
    return tiny_case(
        **{
            "workload": "llm",
            "model": "gpt_small",
            "image_size_px": None,
            "sequence_length": 8,
            "per_device_batch_size": _BATCH_SIZE,
            **changes,
        }
    )


def llama_case(**changes: Any) -> BenchCase:
    return gpt_case(model="llama_tiny", **changes)


def image_case(**changes: Any) -> BenchCase:
    return tiny_case(**{"per_device_batch_size": _BATCH_SIZE, **changes})


class SmallConvNet(nn.Module):
    """Convolutions with batch normalisation in the form of the image models."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(width, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()) for width in (3, 6, 6)]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(6, _VOCABULARY)

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.features(images))

    def predict(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits

    def parts(self) -> list[nn.Module]:
        return [*self.features, Part(self.predict, self.classifier)]


def train(rank: int, world_size: int, cases: dict[str, BenchCase], device: str = "cpu") -> dict[str, Outcome]:
    """What each case gave on this rank."""
    return {label: _train_one(rank, case, torch.device(device)) for label, case in cases.items()}


def train_in_one_process(case: BenchCase, *, device_type: str = "cpu") -> tuple[Outcome, dict[str, float]]:
    """The same steps on the batches of all data ranks, and the largest gradient of each parameter.

    Batch normalisation sees what it sees in the strategy: a rank's batch, or a micro-batch.
    """
    model = build(case).to(device_type)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses: list[float | None] = []
    largest: dict[str, float] = {}
    chunks_per_batch = (num_microbatches(case) or 1) if "pipeline" in case.strategy else 1
    num_chunks = chunks_per_batch * data_ranks(case)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        total = 0.0
        for data_rank in range(data_ranks(case)):
            inputs, targets = make_batch(case, step, data_rank, device_type)
            for chunk in zip(inputs.chunk(chunks_per_batch), targets.chunk(chunks_per_batch), strict=True):
                loss = F.cross_entropy(model(chunk[0]).flatten(0, -2), chunk[1].flatten()) / num_chunks
                loss.backward()
                total += loss.item()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            largest[name] = max(largest.get(name, 0.0), parameter.grad.abs().max().item())
        optimizer.step()
        losses.append(total)
    return (losses, {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}), largest


def build(case: BenchCase) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module
    if case.model == "llama_tiny":
        model = Llama(LlamaConfig(num_layers=3, num_heads=4, num_kv_heads=2, width=16, mlp_width=20, vocab_size=_VOCABULARY))
    elif case.workload == "llm":
        model = Gpt(GptConfig(num_layers=3, num_heads=4, width=16, vocab_size=_VOCABULARY, max_sequence_length=8))
    else:
        model = SmallConvNet()
    return model.double() if case.precision == "fp64" else model


def make_batch(case: BenchCase, step: int, data_rank: int, device_type: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + data_rank)
    if case.workload == "llm":
        tokens = torch.randint(_VOCABULARY, (case.per_device_batch_size, 9), generator=generator).to(device_type)
        return tokens[:, :-1], tokens[:, 1:].contiguous()
    images = torch.randn(case.per_device_batch_size, 3, 8, 8, generator=generator)
    labels = torch.randint(_VOCABULARY, (case.per_device_batch_size,), generator=generator)
    return images.to(device_type, torch.float64 if case.precision == "fp64" else torch.float32), labels.to(device_type)


def _train_one(rank: int, case: BenchCase, device: torch.device) -> Outcome:
    model = build(case)
    wrapped = wrap(case, model, device)
    optimizer = torch.optim.SGD(wrapped.model.parameters(), lr=LEARNING_RATE)
    data_case, data_rank = data_of(case, rank)
    losses: list[float | None] = []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        batch = make_batch(data_case, step, data_rank, device.type)
        loss = wrapped.forward_backward(batch, autocast=nullcontext, scale=lambda loss: loss)
        optimizer.step()
        losses.append(loss.item() if wrapped.knows_loss else None)
    own = {id(parameter) for parameter in wrapped.model.parameters()}
    return losses, {name: _whole(parameter) for name, parameter in model.named_parameters() if id(parameter) in own}


def _whole(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).cpu()


def with_strategies(make_case: Callable[..., BenchCase], *strategies: str, **changes: Any) -> dict[str, BenchCase]:
    """Label -> case."""
    cases = [make_case(strategy=strategy, **changes) for strategy in strategies]
    return {f"{case.model} {case.strategy}": case for case in cases}
