"""The loss's value and dtype, the optimisers, and that the loss falls on every kind of data."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from gpualloc.records import BenchCase
from gpualloc.workloads import OPTIMIZERS, build_model, compute_loss, make_optimizer, open_batches
from tests.workloads.cases import image_case, llm_case


def train(case: BenchCase, *, num_steps: int) -> list[float]:
    """The loss of each step; dropout's generator is seeded so that a run can be repeated."""
    model = build_model(case)
    optimizer = make_optimizer(case, model.parameters())
    batches = open_batches(case, rank=0, pin_memory=False)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(num_steps):
            loss = compute_loss(model, next(batches))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("data", ["synthetic", "digits"])
def test_image_loss_falls(data: str) -> None:
    losses = train(image_case(data=data, per_device_batch_size=16), num_steps=30)
    assert losses[0] == pytest.approx(math.log(1000 if data == "synthetic" else 10), abs=0.5)  # nothing known yet
    assert mean(losses[-5:]) < 0.75 * mean(losses[:3])


@pytest.mark.parametrize("data", ["synthetic", "text"])
def test_llm_loss_falls(data: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(Path(__file__).read_bytes())
    case = llm_case(data=data if data == "synthetic" else str(path), sequence_length=32)
    losses = train(case, num_steps=20)
    assert losses[0] == pytest.approx(math.log(256), abs=0.5)
    assert mean(losses[-5:]) < 0.8 * mean(losses[:3])


def test_loss_is_the_mean_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(7.0), 0.0]])
    image_loss = compute_loss(nn.Identity(), (logits, torch.tensor([1, 1])))
    assert image_loss.item() == pytest.approx((math.log(4 / 3) + math.log(8)) / 2)
    text_loss = compute_loss(nn.Identity(), (logits.unsqueeze(0), torch.tensor([[1, 1]])))
    assert text_loss.item() == pytest.approx(image_loss.item())


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_loss_dtype(dtype: torch.dtype, expected: torch.dtype) -> None:
    loss = compute_loss(nn.Identity(), (torch.randn(4, 3, dtype=dtype), torch.tensor([0, 1, 2, 0])))
    assert loss.dtype == expected
    assert loss.shape == ()


@pytest.mark.parametrize("case", [image_case(), llm_case()], ids=["image", "llm"])
def test_loss_under_autocast_is_fp32_and_reaches_every_parameter(case: BenchCase) -> None:
    model = build_model(case)
    batch = next(open_batches(case, rank=0, pin_memory=False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = compute_loss(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_default_optimizers() -> None:
    parameters = [nn.Parameter(torch.ones(1))]
    image_optimizer = make_optimizer(image_case(), parameters)
    assert isinstance(image_optimizer, torch.optim.SGD)
    assert image_optimizer.defaults["momentum"] == 0.9
    assert isinstance(make_optimizer(llm_case(), parameters), torch.optim.AdamW)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_falls_with_every_optimizer(name: str) -> None:
    case = llm_case(model="llama_tiny", sequence_length=32, per_device_batch_size=8, optimizer=name)
    built = make_optimizer(case, [nn.Parameter(torch.ones(1))])
    assert type(built).__name__.lower() == name.removesuffix("_fused")
    assert built.defaults.get("fused", False) in ((True,) if name.endswith("_fused") else (False, None))
    losses = train(case, num_steps=30)
    assert mean(losses[-5:]) < 0.995 * mean(losses[:3])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_in_fp16_survives_gradients_of_zero(name: str) -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float16))
    parameter.grad = torch.zeros(2, dtype=torch.float16)
    make_optimizer(llm_case(optimizer=name, precision="pure_fp16"), [parameter]).step()
    assert parameter.isfinite().all()


def test_only_what_is_trained_has_an_optimizer_state() -> None:
    parameters = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)]
    assert make_optimizer(llm_case(), parameters).param_groups[0]["params"] == parameters[:1]
