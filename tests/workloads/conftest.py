from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image


def save_noise(path: Path, *, seed: int, size: tuple[int, int] = (40, 36)) -> None:
    """An RGB image of random pixels."""
    width, height = size
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    Image.frombytes("RGB", size, bytes(pixels.flatten().tolist())).save(path)


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """3 classes of 4, 5 and 6 images, in several formats."""
    root = tmp_path / "shapes"
    suffixes = (".png", ".jpg", ".JPEG", ".bmp", ".webp", ".png")
    for label, name in enumerate(("circle", "line", "square")):
        (root / name).mkdir(parents=True)
        for i in range(4 + label):
            save_noise(root / name / f"{i}{suffixes[i]}", seed=10 * label + i)
    return root
