"""A model of one's own for `gpualloc bench`: run it from this folder.

    gpualloc bench --model user_model:make_regression --precision bf16

A factory takes the case (gpualloc.records.BenchCase: sizes, seed, device) and returns the model, a function that makes a batch, and a
loss. `docs/bench.md`, Models, says what is asked of each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpualloc.records import BenchCase


def make_regression(case: BenchCase) -> tuple[nn.Module, Callable[[torch.Generator], tuple[Tensor, Tensor]], nn.Module]:
    """A perceptron that learns the mean brightness of image_size_px x image_size_px gray images."""
    assert case.image_size_px is not None
    num_pixels, width = case.image_size_px**2, 256
    block = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(3)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(num_pixels, width), *block, nn.Linear(width, 1))

    def make_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        brightness = torch.rand(case.per_device_batch_size, 1, 1, generator=generator)
        noise = torch.randn(case.per_device_batch_size, case.image_size_px, case.image_size_px, generator=generator)
        images = brightness + 0.1 * noise
        return images, images.mean(dim=(1, 2)).unsqueeze(1)

    return model, make_batch, nn.MSELoss()
