"""What each rank of tests/train does, in processes of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import gpualloc.train
from gpualloc.errors import GpuallocError
from gpualloc.train import agreement

NUM_SAMPLES = 64


class Numbered(Dataset[tuple[Tensor, Tensor, int]]):
    """Inputs, targets and the sample's number."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(NUM_SAMPLES, 8, generator=generator)

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.inputs[index], self.inputs[index].sum(0, keepdim=True), index


def prepare_different_models(rank: int, world_size: int) -> str:
    """The message on this rank."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(1 + rank)))
    try:
        gpualloc.train.prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.1), Numbered(), per_device_batch_size=4, num_epochs=1, timeout_s=20
        )
    except GpuallocError as error:
        return str(error)
    return ""


def train(
    rank: int,
    world_size: int,
    settings: dict[str, str],
    *,
    stop_after: int | None = None,
    stopping_rank: int = 0,
    dropout: float = 0.2,
    **options: Any,
) -> dict[str, Any]:
    """Trains as `gpualloc run` would have it; the rank `stopping_rank` gets a SIGTERM after the step `stop_after`."""
    for name in [name for name in os.environ if name.startswith("GPUALLOC_")]:
        del os.environ[name]
    if world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ.update({f"GPUALLOC_{name}": value for name, value in settings.items()})
    agreement._ASK_EVERY_S = 0.0  # after every step: these take a millisecond
    torch.manual_seed(rank if settings.get("STRATEGY") == "fsdp" else 0)  # FSDP ranks get the first one's weights from prepare
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    training = gpualloc.train.prepare(
        model, optimizer, Numbered(), **{"per_device_batch_size": 4, "num_epochs": 2, "scheduler": scheduler, **options}
    )
    seen: list[list[int]] = []
    dtypes = set()
    code = None
    try:
        for inputs, targets, numbers in training.batches():
            outputs = training.model(inputs)
            dtypes.add(outputs.dtype)
            training.step(nn.functional.mse_loss(outputs, targets.to(outputs.dtype)))
            seen.append(numbers.tolist())
            if training.steps_done == stop_after and rank == stopping_rank:
                os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as error:
        code = error.code
    weights = {name: value.full_tensor() if hasattr(value, "full_tensor") else value.detach() for name, value in model.named_parameters()}
    return {
        "first_step": training.first_step,
        "steps_done": training.steps_done,
        "num_steps": training.num_steps,
        "seen": seen,
        "dtypes": dtypes,
        "code": code,
        "lr": optimizer.param_groups[0]["lr"],
        "weights": weights,
        "has_checkpoint": "CHECKPOINT" in settings and Path(settings["CHECKPOINT"]).exists(),
    }
