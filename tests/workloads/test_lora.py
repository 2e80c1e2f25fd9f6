"""LoRA: what is frozen, in which format, what is trained and what travels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gpualloc.bench.measure import Trainer
from gpualloc.errors import UsageError
from gpualloc.records import BenchCase
from gpualloc.workloads import build_model, open_batches, unsupported_reason
from tests.ranks import run_ranks
from tests.workloads.cases import image_case, llm_case

pytest.importorskip("peft")

CASE = llm_case(model="llama_tiny", sequence_length=32, per_device_batch_size=8, tuning="lora")
CPU = torch.device("cpu")


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


VIT = image_case(model="vit_b16", tuning="lora")


@pytest.mark.parametrize("case", [CASE, replace(CASE, model="gpt_small"), VIT], ids=lambda case: case.model)
def test_every_linear_layer_of_the_blocks_has_adapters_and_all_else_is_frozen(case: BenchCase) -> None:
    model = build_model(case)
    assert trained(model)
    assert all(".lora_" in name and name.startswith("blocks.") for name in trained(model))
    plain = build_model(replace(case, tuning="full"))
    linears = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear) and name.startswith("blocks.")]
    assert len(trained(model)) == 2 * len(linears)
    for name, parameter in plain.named_parameters():
        layer, _, kind = name.rpartition(".")
        frozen = model.get_parameter(f"{layer}.base_layer.{kind}" if layer in linears else name)
        assert torch.equal(frozen, parameter), "the same seed gives the weights that are tuned in full"


@pytest.mark.parametrize(
    ("precision", "frozen", "adapters"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.float32),
        ("pure_bf16", torch.bfloat16, torch.bfloat16),
        ("fp64", torch.float64, torch.float64),
    ],
)
def test_formats_and_learning(precision: str, frozen: torch.dtype, adapters: torch.dtype) -> None:
    case = replace(CASE, precision=precision, optimizer="sgd")
    trainer, batches = Trainer(case, rank=0, device=CPU), open_batches(case, rank=0, pin_memory=False)
    model = trainer.wrapped.model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.0
    losses = [trainer.step(batches).item() for _ in range(24)]
    assert sum(losses[-8:]) < sum(losses[:8])  # of the same eight batches
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (adapters if ".lora_" in name else frozen)
        assert (parameter.grad is None) == (".lora_" not in name)
        assert torch.equal(parameter, before[name]) == (".lora_" not in name)


def count_wire(rank: int, world_size: int) -> tuple[int, int, int]:
    """Wire bytes as known, as gpualloc's hook counts them, and bytes of the adapters."""
    counts: list[Any] = []
    for hook in ("none", "gpualloc_fp32"):
        case = replace(CASE, strategy="ddp", hook=hook, world_size=world_size, precision="bf16")
        trainer, batches = Trainer(case, rank=rank, device=CPU), open_batches(case, rank=rank, pin_memory=False)
        trainer.step(batches)
        handle = trainer.wrapped.handle
        before = handle.stats().wire_bytes if handle else 0
        trainer.step(batches)
        counts.append(handle.stats().wire_bytes - before if handle else trainer.wrapped.wire_bytes_per_step)
    adapters = sum(parameter.nbytes for parameter in trained(trainer.wrapped.model).values())
    return counts[0], counts[1], adapters


def test_only_adapters_travel() -> None:
    for known, counted, adapters in run_ranks(count_wire, 2):
        assert known == counted == adapters > 0


def test_a_state_put_back_leaves_training_as_it_was() -> None:
    def losses(*, interrupted: bool) -> list[float]:
        trainer, batches = Trainer(CASE, rank=0, device=CPU), open_batches(CASE, rank=0, pin_memory=False)
        found = [trainer.step(batches).item()]
        if interrupted:
            with trainer.state_put_back():
                trainer.step(open_batches(CASE, rank=1, pin_memory=False))
        return [*found, trainer.step(batches).item(), trainer.step(batches).item()]

    assert losses(interrupted=True) == losses(interrupted=False)


def test_without_peft_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unsupported_reason(CASE) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert unsupported_reason(CASE) == "LoRA needs peft, which is not installed here; run: pip install 'gpualloc[lora]'"


def test_a_users_model_without_linear_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Sequential have no nn.Linear|no nn.ModuleList"):
        build_model(image_case(model="tests.workloads.test_lora:make_convolutions", tuning="lora"))


def make_convolutions(case: BenchCase) -> Any:
    block = [torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU()) for _ in range(2)]
    return torch.nn.Sequential(*block), (lambda generator: None), torch.nn.MSELoss()
