"""The registry of models, readable without torch. A GPT of another size is one more entry in `MODELS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpualloc.errors import UsageError

DEFAULT_SEQUENCE_LENGTH = 256  # tokens


@dataclass(frozen=True, kw_only=True)
class GptConfig:
    """The shape of a GPT-2-like decoder."""

    num_layers: int
    num_heads: int
    width: int  # features per token, a multiple of num_heads
    vocab_size: int
    max_sequence_length: int = 1024  # rows of the position table; a longer case makes the table longer


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is known of a model before it is built."""

    name: str
    workload: str  # "image" or "llm"
    description: str
    default_per_device_batch_size: Mapping[str, int]  # "cuda" or "cpu" -> samples per rank and step
    gpt: GptConfig | None = None  # None for image models


_SPECS = (
    ModelSpec(
        name="mobilenet_v2",
        workload="image",
        description="MobileNetV2, the standard network of width 1.0: 3.5 M parameters at 1000 classes",
        default_per_device_batch_size={"cuda": 64, "cpu": 8},
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
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def find_model(name: str, *, workload: str) -> ModelSpec:
    """The registered model of that name.

    Raises:
        UsageError: the name is unknown, or belongs to the other workload.
    """
    allowed = sorted(spec.name for spec in MODELS.values() if spec.workload == workload)
    if name not in allowed:
        raise UsageError(f"model {name!r} is not a model of workload {workload!r}; choose one of {', '.join(allowed) or '(none)'}")
    return MODELS[name]
