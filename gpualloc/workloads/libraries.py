"""Image models of torchvision and timm, by name, with random weights."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from gpualloc.errors import UsageError


def build_library_model(name: str, *, image_size_px: int, num_classes: int) -> nn.Module:
    """The model "torchvision:NAME" or "timm:NAME".

    Raises:
        UsageError: the library cannot be imported, or does not make that model.
    """
    library, _, rest = name.partition(":")
    try:
        module = importlib.import_module("torchvision.models" if library == "torchvision" else "timm")
    except Exception as error:  # a torchvision built for another torch raises RuntimeError
        raise UsageError(
            f"model {name!r}: {library} cannot be imported: {type(error).__name__}: {error}; install the {library} built for this torch"
        ) from error
    try:
        return _make(module, library, rest, image_size_px=image_size_px, num_classes=num_classes)
    except Exception as error:  # unknown names raise ValueError here and RuntimeError there
        raise UsageError(
            f"model {name!r}: {library} does not make it: {type(error).__name__}: {error}; choose another of its models"
        ) from error


def _make(module: Any, library: str, name: str, *, image_size_px: int, num_classes: int) -> nn.Module:
    model: nn.Module
    if library == "torchvision":
        size = {"image_size": image_size_px} if name.startswith("vit_") else {}
        model = module.get_model(name, weights=None, num_classes=num_classes, **size)
        return model
    try:
        model = module.create_model(name, pretrained=False, num_classes=num_classes, img_size=image_size_px)
    except TypeError:  # most convolutional ones take any size and no such argument
        model = module.create_model(name, pretrained=False, num_classes=num_classes)
    return model
