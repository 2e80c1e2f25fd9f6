"""torch.nn.DataParallel: one process copies the model to every GPU in each step and gives each copy a slice of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpualloc.records import BenchCase
from gpualloc.strategies.wrapped import Autocast, Batch, Scale, UnderAutocast, Wrapped
from gpualloc.workloads import compute_loss


def wrap(case: BenchCase, model: nn.Module, device: torch.device) -> Wrapped:
    """The model on the first `case.world_size` GPUs, of which `device` is the first."""
    # Copies run in threads, which know that autocast is on but not to which type: without this bf16 would be fp16 there.
    replica = UnderAutocast(model.to(device))
    parallel = nn.DataParallel(replica, device_ids=list(range(case.world_size)))

    def run_batch(batch: Batch, *, autocast: Autocast, scale: Scale) -> Tensor:
        replica.autocast = autocast
        loss = compute_loss(parallel, batch)
        scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return Wrapped(model=parallel, no_sync=None, wire_bytes_per_step=None, run_batch=run_batch)
