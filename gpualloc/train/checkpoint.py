"""One file that a job goes on from: with another number of ranks, and another strategy, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gpualloc.errors import GpuallocError
from gpualloc.whole_files import replacing

CHECKPOINT_VERSION = 1


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    own: dict[str, Any],
    shared: dict[str, Any],
    group: dist.ProcessGroup | None,
) -> None:
    """Every rank calls it. Rank 0 writes the file: the old one is there until the new one is complete.

    Args:
        own: this rank's state, such as its random generators.
        shared: state that is the same on all ranks.
        group: of the CPU; None: one process.

    Raises:
        GpuallocError: on every rank: it cannot be written.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict  # slow to import

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    rank, world_size = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    states: list[Any] = [own]
    if group is not None:
        states = [None] * world_size
        dist.gather_object(own, states if rank == 0 else None, group=group)
    problem = [None] if rank != 0 else [_write(path, {"model": model_state, "optimizer": optimizer_state, "ranks": states, **shared})]
    if group is not None:
        dist.broadcast_object_list(problem, group=group)
    if problem[0] is not None:
        raise GpuallocError(f"cannot save the checkpoint {path}: {problem[0]}; the one before, if any, is intact; free some space")


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Puts model and optimizer into the saved state and returns the rest of it; None where there is no file.

    Raises:
        GpuallocError: it cannot be read, or is of another model.
    """
    if not path.exists():
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
    except Exception as error:  # a damaged file raises whatever unzipping and unpickling raise
        raise GpuallocError(f"the checkpoint {path} cannot be read: {error!r}; move it aside to start anew") from error
    if not isinstance(version, int) or version > CHECKPOINT_VERSION:
        raise GpuallocError(
            f"the checkpoint {path} has version {version}, this gpualloc reads up to {CHECKPOINT_VERSION}; upgrade gpualloc"
        )
    try:
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state.pop("model"),
            optim_state_dict=state.pop("optimizer"),
            options=StateDictOptions(full_state_dict=True),
        )
    except (KeyError, RuntimeError, ValueError) as error:
        raise GpuallocError(f"the checkpoint {path} is of another model or optimizer: {error}; move it aside to start anew") from error
    return state


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of this rank's generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Undoes `random_state`; a kind of device that it does not have keeps its own."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _write(path: Path, state: dict[str, Any]) -> str | None:
    """Why it failed, or None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save({"version": CHECKPOINT_VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        return str(error).splitlines()[0]
    return None
