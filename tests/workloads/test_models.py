"""Parameters, shapes, work and blocks of the models; what they see."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpualloc.errors import UsageError
from gpualloc.records import BenchCase
from gpualloc.workloads import MODELS, GptConfig, VitConfig, build_model, find_blocks
from gpualloc.workloads.gpt import Gpt
from gpualloc.workloads.mobilenet_v2 import MobileNetV2
from gpualloc.workloads.vit import VisionTransformer
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
        assert sum(config is not None for config in (spec.gpt, spec.llama, spec.vit, spec.conv)) == 1
        assert (spec.vocab_size is not None) == (spec.workload == "llm")


@pytest.mark.parametrize(
    ("workload", "model", "allowed"),
    [("image", "resnet", "mobilenet_v2, resnet50, vit_b16"), ("llm", "vit_b16", "gpt2, gpt_small, gpt_tiny, llama_1b")],
)
def test_a_model_that_the_workload_lacks_is_refused(workload: str, model: str, allowed: str) -> None:
    make_case = image_case if workload == "image" else llm_case
    with pytest.raises(UsageError, match=f"model '{model}' is not a model of workload '{workload}'; choose one of {allowed}"):
        build_model(make_case(model=model))


@pytest.mark.parametrize(
    ("case", "num_parameters"),
    [
        (image_case(model="resnet50", image_size_px=224), 25_557_032),
        (image_case(model="vit_b16", image_size_px=224), 86_567_656),
        (llm_case(model="gpt2"), 124_439_808),
        (llm_case(model="llama_1b"), 1_100_048_384),  # TinyLlama-1.1B
        (llm_case(model="llama_3b"), 3_212_749_824),  # Llama-3.2-3B
        (llm_case(model="llama_8b"), 8_030_261_248),  # Meta-Llama-3-8B
    ],
    ids=lambda value: value.model if isinstance(value, BenchCase) else "",
)
def test_published_sizes(case: BenchCase, num_parameters: int) -> None:
    assert count_parameters(build_model(case, device=torch.device("meta"))) == num_parameters


@pytest.mark.parametrize(("model", "multiply_adds_g"), [("resnet50", 4.09), ("vit_b16", 17.56)])
def test_the_standard_work(model: str, multiply_adds_g: float) -> None:
    """At 224 px, as torchvision's page gives it."""
    built = build_model(image_case(model=model, image_size_px=224), device=torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        built(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(multiply_adds_g, abs=0.005)


def test_resnet50_has_the_standard_names() -> None:
    built = build_model(image_case(model="resnet50"), device=torch.device("meta"))
    shapes = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    assert len(shapes) == 161  # names and shapes as in torchvision's checkpoint resnet50-0676ba61.pth
    assert list(shapes)[:4] == ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert list(shapes)[-2:] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(("model", "image_size_px"), [("resnet50", 32), ("resnet50", 45), ("vit_b16", 32), ("vit_b16", 100)])
def test_image_models_take_any_size_from_32_px(model: str, image_size_px: int) -> None:
    built = build_model(image_case(model=model, image_size_px=image_size_px))
    assert built(torch.randn(2, 3, image_size_px, image_size_px)).shape == (2, 1000)


def test_vit_knows_positions() -> None:
    model = VisionTransformer(VitConfig(num_layers=1, num_heads=1, width=8, patch_size_px=16), image_size_px=32, num_classes=3)
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, :16, :16] = 1
    images[1, :, 16:, 16:] = 1
    logits = model(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_blocks(model: str) -> None:
    """Transformers all of theirs; the networks of convolutions those that repeat."""
    spec = MODELS[model]
    built = build_model((image_case if spec.workload == "image" else llm_case)(model=model), device=torch.device("meta"))
    blocks = find_blocks(built)
    config = spec.gpt or spec.llama or spec.vit
    if config is not None:
        assert list(blocks) == [f"blocks.{number}" for number in range(config.num_layers)]
    else:
        assert len(blocks) == {"mobilenet_v2": 19, "resnet50": 16}[model]
    assert all(built.get_submodule(name) is block for name, block in blocks.items())


def test_a_model_without_blocks_is_named() -> None:
    with pytest.raises(UsageError, match=r"Linear has no nn.ModuleList .* leave activation checkpointing"):
        find_blocks(nn.Linear(2, 2))


def test_parameters_come_to_be_in_the_dtype_that_is_asked_for() -> None:
    model = build_model(llm_case(model="llama_tiny"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.gpu
def test_models_are_built_on_the_gpu_and_leave_its_generator_alone() -> None:
    device = torch.device("cuda", 0)
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    models = [build_model(llm_case(model="llama_tiny"), device=device) for _ in range(2)]
    assert torch.equal(torch.cuda.get_rng_state(), state)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert first.is_cuda
        assert torch.equal(first, second)
    assert not torch.equal(models[0].head.weight, build_model(llm_case(model="llama_tiny", seed=1), device=device).head.weight)
