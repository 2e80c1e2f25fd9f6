"""What a strategy gives back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from gpualloc.comm import HookHandle
from gpualloc.workloads import compute_loss

Batch = tuple[Tensor, Tensor]
Autocast = Callable[[], AbstractContextManager[object]]
Scale = Callable[[Tensor], Tensor]


class ForwardBackward(Protocol):
    def __call__(self, batch: Batch, *, autocast: Autocast, scale: Scale) -> Tensor:
        """Leaves gradients, summed up and ready for the optimiser, and returns the loss, detached.

        Args:
            batch: inputs and targets on the device.
            autocast: makes the context for forward.
            scale: of the loss, before backward.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """A model ready to train on one rank."""

    model: nn.Module  # has the parameters that this rank's optimiser updates
    no_sync: Callable[[], AbstractContextManager[None]] | None  # passes inside it stay on this rank; None: they cannot
    handle: HookHandle | None = None  # counts the bytes and the non-finite steps, where the hook is gpualloc's
    # Bytes of the whole tensors that collectives work on, known from the parameters; None where they are not known. `handle` counts.
    wire_bytes_per_step: int | None
    run_batch: ForwardBackward | None = None  # where forward and backward are not a call of the model and of autograd
    shard: int = 0  # ranks of the same number hold the same parameters
    knows_loss: bool = True  # else another rank does
    is_sharded: bool = False  # ranks have different gradients, so that what is not finite on one must stop the others

    def forward_backward(self, batch: Batch, *, autocast: Autocast, scale: Scale) -> Tensor:
        """As `ForwardBackward`."""
        if self.run_batch is not None:
            return self.run_batch(batch, autocast=autocast, scale=scale)
        with autocast():
            loss = compute_loss(self.model, batch)
        scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class UnderAutocast(nn.Module):
    """Its module's forward under autocast, for where the caller's context does not reach: other threads, single micro-batches."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.autocast: Autocast = nullcontext

    def forward(self, x: Tensor) -> Tensor:
        with self.autocast():
            out: Tensor = self.module(x)
            return out
