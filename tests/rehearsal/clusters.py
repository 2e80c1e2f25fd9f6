"""Links with round figures, and what is rehearsed over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gpualloc.rehearsal import LinkModel, Rehearsal
from gpualloc.rehearsal.link_model import write_link

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make_link(**fields: Any) -> LinkModel:
    """1 GB/s and 100 us a collective, whatever the number of ranks."""
    plain: dict[str, Any] = {
        "name": "round",
        "title": "round figures",
        "level": "node",
        "busbw_gb_s": 1.0,
        "base_latency_us": 100.0,
        "hop_latency_us": {"ring": 0.0, "tree": 0.0},
        "efficiency": [(1.0, 1.0)],
        "sources": ["made"],
    }
    return LinkModel.model_validate({**plain, **fields})


def make_rehearsal(folder: Path, world_size: int, **fields: Any) -> Rehearsal:
    """One node of so many GPUs over `make_link(**fields)`."""
    file = folder / "round.yaml"
    write_link(make_link(**fields), file)
    return Rehearsal(world_size=world_size, gpus_per_node=world_size, link=str(file))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
