"""Gradients to pack: the parameter shapes of real models, in enough copies that no run finds its data in a cache."""

from __future__ import annotations

import torch
from torch import Size, Tensor

from gpualloc.workloads.gpt import Gpt
from gpualloc.workloads.mobilenet_v2 import MobileNetV2
from gpualloc.workloads.models import MODELS

# More than any last-level cache so far: 60 MB of L2 on an H200, some hundred MB of L3 on a server processor.
ROTATION_BYTES = 512 * 2**20


def shapes(model: str) -> list[Size]:
    """Parameter shapes of "mobilenet_v2" (3.5 M in 158 tensors), "resnet50" (25.6 M in 161), "gpt2" (124 M in 148), "vit_large"
    (304 M in 296) or "llama_1b" (1.1 B in 147: 16 layers, 2048 wide, 32 heads of which 8 for keys and values)."""
    if model == "mobilenet_v2":
        with torch.device("meta"):
            return [parameter.shape for parameter in MobileNetV2(num_classes=1000).parameters()]
    if model == "gpt2":
        config = MODELS["gpt2"].gpt
        assert config is not None
        with torch.device("meta"):
            return [parameter.shape for parameter in Gpt(config).parameters()]
    return {"resnet50": _resnet50, "vit_large": _vit_large, "llama_1b": _llama_1b}[model]()


def _resnet50() -> list[Size]:
    sizes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            sizes += [(width, channels, 1, 1), (width,), (width,), (width, width, 3, 3), (width,), (width,), (4 * width, width, 1, 1)]
            sizes += [(4 * width,), (4 * width,)]
            if block == 0:
                sizes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [Size(size) for size in [*sizes, (1000, 2048), (1000,)]]


def _vit_large() -> list[Size]:
    width = 1024
    layer = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
    layer += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    stem = [(1, 1, width), (width, 3, 16, 16), (width,), (1, 197, width)]
    return [Size(size) for size in [*stem, *(layer * 24), (width,), (width,), (1000, width), (1000,)]]


def _llama_1b() -> list[Size]:
    width, kv, hidden, vocabulary = 2048, 512, 8192, 32000
    layer = [
        (width, width),
        (kv, width),
        (kv, width),
        (width, width),
        (hidden, width),
        (hidden, width),
        (width, hidden),
        (width,),
        (width,),
    ]
    return [Size(size) for size in [(vocabulary, width), *(layer * 16), (width,), (vocabulary, width)]]


def gradient_sets(model: str, device: str) -> list[list[Tensor]]:
    """Lists of random FP32 gradients, to be used in turn."""
    sizes = shapes(model)
    count = min(40, max(2, ROTATION_BYTES // (4 * sum(size.numel() for size in sizes)) + 1))
    return [[torch.randn(size, device=device) for size in sizes] for _ in range(count)]


def rotate(gradients: list[list[Tensor]], dtype: torch.dtype = torch.float16) -> list[tuple[list[Tensor], Tensor]]:
    """(gradients, a flat wire buffer of their size), different memory in each."""
    total = sum(gradient.numel() for gradient in gradients[0])
    return [(one, torch.randn(total, device=one[0].device).to(dtype)) for one in gradients]
