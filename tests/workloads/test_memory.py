"""The estimate held to the parameters and to what autograd really keeps; the batch size that follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gpualloc.bench import precision as precisions
from gpualloc.bench.measure import Trainer
from gpualloc.bench.preparation import prepare_model
from gpualloc.records import BenchCase
from gpualloc.workloads import (
    MODELS,
    build_model,
    compute_loss,
    device_memory_reason,
    estimate_memory_bytes,
    fitting_batch_size,
    open_batches,
)
from gpualloc.workloads.memory import count_parameters, count_trained_parameters, kept_bytes_per_sample
from tests.workloads.cases import image_case, llm_case

GIB = 2**30


def case_of(model: str, **changes: object) -> BenchCase:
    return image_case(model=model, **changes) if MODELS[model].workload == "image" else llm_case(model=model, **changes)


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_counted_without_building(model: str) -> None:
    case = case_of(model)
    built = build_model(case, device=torch.device("meta"))
    assert count_parameters(case) == sum(parameter.numel() for parameter in built.parameters())


def test_longer_sequences_and_larger_images_have_more_positions() -> None:
    for case in (llm_case(sequence_length=1500), image_case(model="vit_b16", image_size_px=300)):
        built = build_model(case, device=torch.device("meta"))
        assert count_parameters(case) == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("model", ["vit_b16", "gpt_small", "llama_tiny", "llama_8b"])
def test_adapters_are_counted_without_building(model: str) -> None:
    pytest.importorskip("peft")
    case = case_of(model, tuning="lora")
    built = build_model(case, device=torch.device("meta"))
    assert count_trained_parameters(case) == sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)


def measured_bytes(case: BenchCase) -> int:
    """Bytes of the distinct storages that the graph of a loss holds, parameters aside."""
    model = prepare_model(case, torch.device("cpu"))
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    inputs, targets = next(open_batches(case, rank=0, pin_memory=False))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precisions.autocast(case.precision, "cpu"):
        compute_loss(model, (precisions.convert_input(inputs, case.precision), targets))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(num_bytes for pointer, num_bytes in storages.items() if pointer not in own)


@pytest.mark.parametrize(
    "case",
    [
        image_case(image_size_px=96),
        image_case(model="resnet50", image_size_px=128, per_device_batch_size=2),
        image_case(model="vit_b16", image_size_px=96, per_device_batch_size=2),
        llm_case(sequence_length=128),
        llm_case(sequence_length=128, precision="pure_bf16"),
        llm_case(model="llama_tiny", sequence_length=128, per_device_batch_size=8),
        llm_case(model="llama_tiny", sequence_length=128, per_device_batch_size=8, precision="bf16"),
        llm_case(model="llama_tiny", sequence_length=128, per_device_batch_size=8, precision="fp64"),
        llm_case(sequence_length=128, activation_checkpointing=True),
    ],
    ids=lambda case: case.label(),
)
def test_what_autograd_keeps(case: BenchCase) -> None:
    expected = kept_bytes_per_sample(case)
    assert expected is not None
    expected *= case.per_device_batch_size
    if case.activation_checkpointing:  # the second computation of one block comes later, in the backward pass
        plain = replace(case, activation_checkpointing=False)
        assert measured_bytes(case) < expected < 0.5 * measured_bytes(plain)
        return
    # Of the logits' three copies the third is a gradient; class numbers, statistics of norms and cast weights are small.
    assert expected == pytest.approx(measured_bytes(case), rel=0.12)


def test_the_terms_of_the_estimate() -> None:
    """8 B parameters: 16 bytes each in fp32 with AdamW and one more number while it steps; 2 under LoRA in bf16."""
    full = llm_case(model="llama_8b", per_device_batch_size=1, device="cuda", optimizer="adamw_fused")
    in_fp32 = estimate_memory_bytes(full)
    in_bf16 = estimate_memory_bytes(replace(full, precision="pure_bf16"))
    lora = estimate_memory_bytes(replace(full, precision="bf16", tuning="lora"))
    sharded = estimate_memory_bytes(full, num_shards=8)
    assert in_fp32 is not None
    assert in_bf16 is not None
    assert lora is not None
    assert sharded is not None
    assert in_fp32 == pytest.approx(16 * 8.03e9, rel=0.02)
    assert in_bf16 == pytest.approx(8 * 8.03e9, rel=0.02)
    assert lora == pytest.approx(2 * 8.03e9, rel=0.1)
    assert sharded == pytest.approx(in_fp32 / 8, rel=0.05)
    assert estimate_memory_bytes(replace(full, optimizer="sgd")) == pytest.approx(12 * 8.03e9, rel=0.02)


def test_the_batch_is_halved_until_it_fits() -> None:
    case = image_case(image_size_px=500, device="cuda")
    assert fitting_batch_size(case, device_memory_bytes=80 * GIB) == 64
    size = fitting_batch_size(case, device_memory_bytes=8 * GIB)
    assert size in (1, 2, 4, 8, 16, 32)
    fitting, twice = (estimate_memory_bytes(replace(case, per_device_batch_size=factor * size)) for factor in (1, 2))
    assert fitting is not None
    assert twice is not None
    assert fitting <= 0.85 * 8 * GIB < twice


def test_what_can_never_fit_says_so() -> None:
    case = llm_case(model="llama_8b", device="cuda", sequence_length=256)
    assert fitting_batch_size(case, device_memory_bytes=80 * GIB) == 0
    reason = device_memory_reason(case, device_memory_bytes=80 * GIB)
    assert reason is not None
    assert reason.startswith("training llama_8b (full tuning, fp32) takes about 1")
    assert "GiB a rank with a batch of 1 and the device has 80; tune with lora" in reason
    assert device_memory_reason(case, device_memory_bytes=80 * GIB, num_shards=8) is None
    assert device_memory_reason(replace(case, tuning="lora", precision="bf16"), device_memory_bytes=80 * GIB) is None


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        image_case(image_size_px=224, per_device_batch_size=64, device="cuda"),
        image_case(image_size_px=224, per_device_batch_size=64, device="cuda", precision="bf16", model="resnet50"),
        image_case(image_size_px=224, per_device_batch_size=64, device="cuda", precision="bf16", model="vit_b16"),
        llm_case(model="gpt2", sequence_length=512, per_device_batch_size=8, device="cuda"),
        llm_case(model="gpt2", sequence_length=512, per_device_batch_size=8, device="cuda", precision="bf16"),
        llm_case(model="llama_1b", sequence_length=512, per_device_batch_size=8, device="cuda", precision="pure_bf16"),
        llm_case(model="llama_1b", sequence_length=512, per_device_batch_size=8, device="cuda", precision="bf16", tuning="lora"),
    ],
    ids=lambda case: case.label(),
)
def test_the_estimate_on_a_gpu(case: BenchCase) -> None:
    if case.tuning == "lora":
        pytest.importorskip("peft")
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer, batches = Trainer(case, rank=0, device=device), open_batches(case, rank=0, pin_memory=True)
    for _ in range(2):
        trainer.step(batches)
    torch.cuda.synchronize()
    estimate = estimate_memory_bytes(case)
    assert estimate is not None
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(estimate, rel=0.25)
