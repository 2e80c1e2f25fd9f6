"""The registry of models, readable without torch. A transformer of another size is one more entry in `MODELS`.

Beside the registered names there are `torchvision:NAME` and `timm:NAME`, and `package.module:factory` for a model of one's own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from gpualloc.errors import UsageError
from gpualloc.workloads.user_model import check_factory

DEFAULT_SEQUENCE_LENGTH = 256  # tokens
LIBRARIES = ("torchvision", "timm")  # whose image models go by "library:name"


@dataclass(frozen=True, kw_only=True)
class GptConfig:
    """The shape of a GPT-2-like decoder."""

    num_layers: int
    num_heads: int
    width: int  # features per token, a multiple of num_heads
    vocab_size: int
    max_sequence_length: int = 1024  # rows of the position table; a longer case makes the table longer


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a Llama-like decoder."""

    num_layers: int
    num_heads: int
    num_kv_heads: int  # a divisor of num_heads: so many heads share keys and values
    width: int  # features per token, a multiple of num_heads
    mlp_width: int
    vocab_size: int
    rope_theta: float = 10_000.0
    tied_embeddings: bool = False  # the token embedding is the output layer, too

    @property
    def kv_width(self) -> int:
        """Features of keys, and of values."""
        return self.width // self.num_heads * self.num_kv_heads


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """The shape of a vision transformer."""

    num_layers: int
    num_heads: int
    width: int  # features per patch, a multiple of num_heads
    patch_size_px: int


@dataclass(frozen=True, kw_only=True)
class ConvFigures:
    """What is counted of a convolutional network."""

    num_body_parameters: int  # all but the last layer's
    last_channels: int  # inputs of the last layer
    kept_elements_per_pixel: float  # that autograd keeps for the backward pass, per pixel of an image


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is known of a model before it is built."""

    name: str
    workload: str  # "image" or "llm"
    description: str
    default_per_device_batch_size: Mapping[str, int]  # "cuda" or "cpu" -> samples per rank and step
    gpt: GptConfig | None = None
    llama: LlamaConfig | None = None
    vit: VitConfig | None = None
    conv: ConvFigures | None = None  # computes with convolutions: nothing made for Linear layers applies

    @property
    def vocab_size(self) -> int | None:
        """Tokens a registered language model knows."""
        config = self.gpt or self.llama
        return None if config is None else config.vocab_size

    @property
    def is_user_model(self) -> bool:
        """Whether it comes from a factory of the user's, with batches and loss."""
        return ":" in self.name and self.library is None

    @property
    def library(self) -> str | None:
        """ "torchvision" or "timm", where the model is theirs."""
        library = self.name.partition(":")[0]
        return library if library in LIBRARIES and ":" in self.name else None


_UNKNOWN_BATCH_SIZES = {"cuda": 16, "cpu": 4}  # of models that are not registered

_SPECS = (
    ModelSpec(
        name="mobilenet_v2",
        workload="image",
        description="MobileNetV2, the standard network of width 1.0: 3.5 M parameters at 1000 classes",
        default_per_device_batch_size={"cuda": 64, "cpu": 8},
        conv=ConvFigures(num_body_parameters=2_223_872, last_channels=1280, kept_elements_per_pixel=412.0),
    ),
    ModelSpec(
        name="resnet50",
        workload="image",
        description="ResNet-50 with the stride in its 3x3 convolutions (v1.5): 25.6 M parameters at 1000 classes",
        default_per_device_batch_size={"cuda": 64, "cpu": 4},
        conv=ConvFigures(num_body_parameters=23_508_032, last_channels=2048, kept_elements_per_pixel=451.0),
    ),
    ModelSpec(
        name="vit_b16",
        workload="image",
        description="Vision transformer ViT-B/16: 12 layers, 768 wide, 86.6 M parameters at 1000 classes and 224 px",
        default_per_device_batch_size={"cuda": 64, "cpu": 4},
        vit=VitConfig(num_layers=12, num_heads=12, width=768, patch_size_px=16),
    ),
    ModelSpec(
        name="gpt_small",
        workload="llm",
        description="GPT-2-like decoder on bytes: 6 layers, 384 wide, 11 M parameters",
        default_per_device_batch_size={"cuda": 32, "cpu": 4},
        gpt=GptConfig(num_layers=6, num_heads=6, width=384, vocab_size=256),
    ),
    ModelSpec(
        name="gpt_tiny",
        workload="llm",
        description="GPT-2-like decoder on bytes: 2 layers, 128 wide, 0.6 M parameters",
        default_per_device_batch_size={"cuda": 32, "cpu": 16},
        gpt=GptConfig(num_layers=2, num_heads=4, width=128, vocab_size=256),
    ),
    ModelSpec(
        name="gpt2",
        workload="llm",
        description="GPT-2 as published: 12 layers, 768 wide, vocabulary 50257, 124 M parameters",
        default_per_device_batch_size={"cuda": 8, "cpu": 1},
        gpt=GptConfig(num_layers=12, num_heads=12, width=768, vocab_size=50257),
    ),
    ModelSpec(
        name="llama_tiny",
        workload="llm",
        description="Llama-like decoder on bytes for trying things out: 2 layers, 64 wide, 0.1 M parameters",
        default_per_device_batch_size={"cuda": 32, "cpu": 4},
        llama=LlamaConfig(num_layers=2, num_heads=4, num_kv_heads=2, width=64, mlp_width=176, vocab_size=256),
    ),
    ModelSpec(
        name="llama_1b",
        workload="llm",
        description="TinyLlama's shape: 22 layers, 2048 wide, vocabulary 32000, 1.1 B parameters",
        default_per_device_batch_size={"cuda": 8, "cpu": 1},
        llama=LlamaConfig(num_layers=22, num_heads=32, num_kv_heads=4, width=2048, mlp_width=5632, vocab_size=32000),
    ),
    ModelSpec(
        name="llama_3b",
        workload="llm",
        description="Llama 3.2 3B's shape: 28 layers, 3072 wide, vocabulary 128256, 3.2 B parameters",
        default_per_device_batch_size={"cuda": 4, "cpu": 1},
        llama=LlamaConfig(
            num_layers=28,
            num_heads=24,
            num_kv_heads=8,
            width=3072,
            mlp_width=8192,
            vocab_size=128256,
            rope_theta=500_000.0,
            tied_embeddings=True,
        ),
    ),
    ModelSpec(
        name="llama_8b",
        workload="llm",
        description="Llama 3 8B's shape: 32 layers, 4096 wide, vocabulary 128256, 8.0 B parameters",
        default_per_device_batch_size={"cuda": 4, "cpu": 1},
        llama=LlamaConfig(
            num_layers=32, num_heads=32, num_kv_heads=8, width=4096, mlp_width=14336, vocab_size=128256, rope_theta=500_000.0
        ),
    ),
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def find_model(name: str, *, workload: str | None = None) -> ModelSpec:
    """The model of that name: a registered one, "torchvision:NAME", "timm:NAME" or "package.module:factory".

    Args:
        workload: the one it must be of. A factory's model is of any; where this is None it is taken for an image model.

    Raises:
        UsageError: the name is unknown or belongs to the other workload, its library is not installed, or its factory cannot be imported.
    """
    library, colon, rest = name.partition(":")
    if not colon:
        allowed = sorted(spec.name for spec in MODELS.values() if workload in (None, spec.workload))
        if name not in allowed:
            where = f"a model of workload {workload!r}" if workload else "a known model"
            raise UsageError(
                f"model {name!r} is not {where}; choose one of {', '.join(allowed) or '(none)'}; "
                "or torchvision:NAME, timm:NAME, package.module:factory"
            )
        return MODELS[name]
    if library not in LIBRARIES:
        check_factory(name)
        return _unregistered(name, workload or "image", "a model of your own")
    if workload not in (None, "image"):
        raise UsageError(f"model {name!r} is an image model and the workload is {workload!r}; choose workload image")
    if not rest:
        raise UsageError(f"model {name!r} names no model of {library}; write for example {library}:resnet18")
    if importlib.util.find_spec(library) is None:
        raise UsageError(f"model {name!r} needs {library}, which is not installed here; run: pip install {library}")
    return _unregistered(name, "image", f"{rest} of {library}")


def _unregistered(name: str, workload: str, description: str) -> ModelSpec:
    return ModelSpec(name=name, workload=workload, description=description, default_per_device_batch_size=_UNKNOWN_BATCH_SIZES)
