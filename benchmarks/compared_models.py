"""The models of compare_hooks.py: name -> network and a batch of random data. Sizes of the first three are for one core a rank."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gpualloc.workloads.gpt import Gpt
from gpualloc.workloads.mobilenet_v2 import MobileNetV2
from gpualloc.workloads.models import MODELS, GptConfig

_NUM_CLASSES = 1000
# 13.8 M parameters, of which the embedding, whose gradient is ready last, is a fifth.
_GPT_13M = GptConfig(num_layers=6, num_heads=6, width=384, vocab_size=8000, max_sequence_length=128)


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """What is trained; the data is noise, so that a step costs what it costs and nothing is read."""

    description: str
    device: str  # "cpu" or "cuda", where it is a default
    build: Callable[[], nn.Module]
    make_batch: Callable[[Generator], tuple[Tensor, Tensor]]  # (inputs, targets)


def _images(batch_size: int, size_px: int) -> Callable[[Generator], tuple[Tensor, Tensor]]:
    return lambda generator: (
        torch.randn(batch_size, 3, size_px, size_px, generator=generator),
        torch.randint(_NUM_CLASSES, (batch_size,), generator=generator),
    )


def _tokens(batch_size: int, length: int, vocab_size: int) -> Callable[[Generator], tuple[Tensor, Tensor]]:
    def make(generator: Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(vocab_size, (batch_size, length + 1), generator=generator)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return make


def _build_gpt2() -> nn.Module:
    config = MODELS["gpt2"].gpt
    assert config is not None
    return Gpt(config)


class _Logits(nn.Module):
    """A transformers model that returns its logits as the others do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def _build_resnet50() -> nn.Module:
    if importlib.util.find_spec("torchvision") is not None:
        from torchvision.models import resnet50

        model: nn.Module = resnet50(num_classes=_NUM_CLASSES)
        return model
    from transformers import ResNetConfig, ResNetForImageClassification

    return _Logits(ResNetForImageClassification(ResNetConfig(num_labels=_NUM_CLASSES)))  # its defaults are ResNet-50's


def why_missing(model: str) -> str | None:
    """Which package a model needs that is not here, or None."""
    if model == "resnet50" and not any(importlib.util.find_spec(name) for name in ("torchvision", "transformers")):
        return "resnet50 needs torchvision or transformers; neither is installed"
    return None


COMPARED_MODELS = {
    "mlp": ComparedModel(
        description="three layers, 0.1 M parameters, for tests",
        device="any",
        build=lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 200), nn.ReLU(), nn.Linear(200, _NUM_CLASSES)
        ),
        make_batch=_images(4, 8),
    ),
    "mobilenet_v2_96px": ComparedModel(
        description="MobileNetV2, 3.5 M parameters, 4 images of 96 px",
        device="cpu",
        build=lambda: MobileNetV2(num_classes=_NUM_CLASSES),
        make_batch=_images(4, 96),
    ),
    "gpt_13m": ComparedModel(
        description="GPT of 6 layers, 384 wide, 13.8 M parameters, 2 x 64 tokens",
        device="cpu",
        build=lambda: Gpt(_GPT_13M),
        make_batch=_tokens(2, 64, _GPT_13M.vocab_size),
    ),
    "mobilenet_v2": ComparedModel(
        description="MobileNetV2, 3.5 M parameters, 64 images of 224 px",
        device="cuda",
        build=lambda: MobileNetV2(num_classes=_NUM_CLASSES),
        make_batch=_images(64, 224),
    ),
    "resnet50": ComparedModel(
        description="ResNet-50, 25.6 M parameters, 64 images of 224 px",
        device="cuda",
        build=_build_resnet50,
        make_batch=_images(64, 224),
    ),
    "gpt2": ComparedModel(
        description="GPT-2, 124 M parameters, 8 x 512 tokens", device="cuda", build=_build_gpt2, make_batch=_tokens(8, 512, 50257)
    ),
}
