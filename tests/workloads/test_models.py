"""Parameter counts, shapes and the order of MobileNetV2; GPT's size, causality and tied weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpualloc.errors import UsageError
from gpualloc.workloads import MODELS, GptConfig, build_model
from gpualloc.workloads.gpt import Gpt
from gpualloc.workloads.mobilenet_v2 import MobileNetV2
from tests.workloads.cases import image_case, llm_case


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def imagenet_model() -> MobileNetV2:
    with torch.device("meta"):
        return MobileNetV2(num_classes=1000)


def test_mobilenet_v2_has_the_standard_parameters(imagenet_model: MobileNetV2) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in imagenet_model.named_parameters()}
    assert len(shapes) == 158
    assert count_parameters(imagenet_model) == 3_504_872
    # Names and shapes as in torchvision's checkpoint mobilenet_v2-7ebf99e0.pth.
    assert list(shapes.items())[:10] == [
        ("features.0.0.weight", (32, 3, 3, 3)),
        ("features.0.1.weight", (32,)),
        ("features.0.1.bias", (32,)),
        ("features.1.conv.0.0.weight", (32, 1, 3, 3)),
        ("features.1.conv.0.1.weight", (32,)),
        ("features.1.conv.0.1.bias", (32,)),
        ("features.1.conv.1.weight", (16, 32, 1, 1)),
        ("features.1.conv.2.weight", (16,)),
        ("features.1.conv.2.bias", (16,)),
        ("features.2.conv.0.0.weight", (96, 16, 1, 1)),
    ]
    assert list(shapes.items())[-2:] == [("classifier.1.weight", (1000, 1280)), ("classifier.1.bias", (1000,))]
    assert shapes["features.14.conv.1.0.weight"] == (576, 1, 3, 3)
    assert shapes["features.17.conv.2.weight"] == (320, 960, 1, 1)
    assert shapes["features.18.0.weight"] == (1280, 320, 1, 1)


def test_mobilenet_v2_does_the_standard_work(imagenet_model: MobileNetV2) -> None:
    """Strides and groups do not show in shapes; 0.301 G multiply-adds at 224 px is what torchvision's page gives."""
    with FlopCounterMode(display=False) as counter:
        imagenet_model(torch.empty(1, 3, 224, 224, device="meta"))
    assert round(counter.get_total_flops() / 2 / 1e9, 3) == 0.301


@pytest.mark.parametrize("image_size_px", [32, 33, 100])
def test_mobilenet_v2_takes_any_size_from_32_px(image_size_px: int) -> None:
    model = build_model(image_case())
    assert model(torch.randn(2, 3, image_size_px, image_size_px)).shape == (2, 1000)


def test_gpt2_has_the_published_size() -> None:
    assert MODELS["gpt2"].gpt is not None
    with torch.device("meta"):
        model = Gpt(MODELS["gpt2"].gpt)
    assert count_parameters(model) == 124_439_808


def test_gpt_small_is_between_10_and_14_million() -> None:
    assert 10e6 < count_parameters(build_model(llm_case())) < 14e6


def test_gpt_sees_only_the_past() -> None:
    model = Gpt(GptConfig(num_layers=2, num_heads=2, width=16, vocab_size=11))
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert before.shape == (1, 8, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Gpt(GptConfig(num_layers=2, num_heads=2, width=16, vocab_size=11)), torch.randint(11, (2, 8))),
        (MobileNetV2(num_classes=5).eval(), torch.randn(1, 3, 32, 32)),
    ],
    ids=["gpt", "mobilenet_v2"],
)
def test_the_parts_one_after_the_other_are_the_model(model: Gpt | MobileNetV2, inputs: torch.Tensor) -> None:
    parts = model.parts()
    assert torch.equal(nn.Sequential(*parts)(inputs), model(inputs))
    assert {id(parameter) for part in parts for parameter in part.parameters()} == {id(parameter) for parameter in model.parameters()}


def test_gpt_knows_positions() -> None:
    model = Gpt(GptConfig(num_layers=1, num_heads=1, width=8, vocab_size=3))
    logits = model(torch.ones(1, 4, dtype=torch.int64))
    assert (logits[0, 0] - logits[0, 3]).abs().max() > 1e-4


def test_gpt_table_of_positions_grows_with_the_case() -> None:
    model = build_model(llm_case(sequence_length=1500))
    assert model.get_parameter("position_embedding.weight").shape[0] == 1500


@pytest.mark.parametrize("case", [image_case(), llm_case()], ids=["image", "llm"])
def test_same_seed_same_weights_and_the_global_generator_is_left_alone(case) -> None:
    torch.rand(3)  # any state but the first
    state = torch.get_rng_state()
    first = build_model(case)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again = build_model(case)
    other = build_model(type(case)(**{**vars(case), "seed": 1}))
    for name, parameter in first.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"
        assert torch.equal(parameter, again.get_parameter(name))
    assert any(not torch.equal(parameter, other.get_parameter(name)) for name, parameter in first.named_parameters())


def test_every_model_names_batch_sizes_for_both_devices() -> None:
    for name, spec in MODELS.items():
        assert name == spec.name
        assert set(spec.default_per_device_batch_size) == {"cuda", "cpu"}
        assert (spec.gpt is not None) == (spec.workload == "llm")


@pytest.mark.parametrize(
    ("workload", "model", "allowed"), [("image", "resnet", "mobilenet_v2"), ("llm", "mobilenet_v2", "gpt2, gpt_small, gpt_tiny")]
)
def test_a_model_that_the_workload_lacks_is_refused(workload: str, model: str, allowed: str) -> None:
    make_case = image_case if workload == "image" else llm_case
    with pytest.raises(UsageError, match=f"model '{model}' is not a model of workload '{workload}'; choose one of {allowed}$"):
        build_model(make_case(model=model))
