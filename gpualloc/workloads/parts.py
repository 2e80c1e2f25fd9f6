"""Part of a model's forward pass as a module of its own, so that a pipeline can cut the model there."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Part(nn.Module):
    """A method of a model, with the parameters of those of the model's modules that the method uses."""

    def __init__(self, method: Callable[[Tensor], Tensor], *used: nn.Module) -> None:
        super().__init__()
        self.method = method
        self.used = nn.ModuleList(used)

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)
