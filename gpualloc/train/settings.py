"""What was planned for this process, and its place among the ranks, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpualloc.bench.precision import PRECISIONS
from gpualloc.errors import UsageError
from gpualloc.strategies import HOOKS

STRATEGIES = ("single", "data_parallel", "ddp", "fsdp", "hsdp")  # those that take any model
_BUILT_IN = ("tensor_parallel", "pipeline", "pipeline_ddp", "ddp_full_data")
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. Where `gpualloc run` started the process, the plan's; else the script's own."""

    strategy: str
    precision: str
    hook: str  # of ddp
    per_device_batch_size: int  # samples of one backward pass
    grad_accum_steps: int
    learning_rate_factor: float
    checkpoint: Path | None
    job_folder: Path | None  # for progress; None: nobody watches
    job_name: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among the ranks."""

    rank: int
    local_rank: int
    world_size: int
    is_launched: bool  # by torchrun, or by what sets the same variables


def read_place(environment: Mapping[str, str] | None = None) -> Place:
    """Raises:
    UsageError: a part of torchrun's variables is set.
    """
    environment = os.environ if environment is None else environment
    if int(environment.get("WORLD_SIZE", "1")) == 1 and "MASTER_ADDR" not in environment:
        return Place(rank=0, local_rank=0, world_size=1, is_launched=False)
    missing = [name for name in _TORCHRUN if name not in environment]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {environment.get('WORLD_SIZE')!r} and {', '.join(missing)} not set: this is half of torchrun's environment; "
            "start the script with: torchrun --nproc-per-node N train.py, or unset WORLD_SIZE and MASTER_ADDR to train alone"
        )
    rank, local_rank, world_size = (int(environment[name]) for name in _TORCHRUN[:3])
    return Place(rank=rank, local_rank=local_rank, world_size=world_size, is_launched=True)


def read_settings(
    *,
    world_size: int,
    strategy: str | None,
    precision: str,
    hook: str,
    per_device_batch_size: int,
    grad_accum_steps: int,
    checkpoint: str | os.PathLike[str] | None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """The plan's settings over the script's own.

    Raises:
        UsageError: a value that cannot be meant, named with what is allowed.
    """
    environment = os.environ if environment is None else environment
    planned = {name: environment.get(f"GPUALLOC_{name}") for name in ("STRATEGY", "PRECISION", "HOOK", "CHECKPOINT", "JOB_FOLDER")}
    chosen = planned["STRATEGY"] or strategy or ("ddp" if world_size > 1 else "single")
    chosen_hook = planned["HOOK"] or (hook if chosen == "ddp" else "none")
    chosen_precision = planned["PRECISION"] or precision
    if chosen in _BUILT_IN:
        raise UsageError(f"strategy {chosen!r} takes gpualloc's own models apart; for a script choose one of {', '.join(STRATEGIES)}")
    for name, value, allowed in (
        ("strategy", chosen, STRATEGIES),
        ("precision", chosen_precision, tuple(each for each in PRECISIONS if each != "fp8")),
        ("hook", chosen_hook, HOOKS),
    ):
        if value not in allowed:
            raise UsageError(f"{name} {value!r} is unknown here; choose one of {', '.join(allowed)}")
    if chosen in ("single", "data_parallel") and world_size > 1:
        raise UsageError(f"strategy {chosen!r} is one process and torchrun started {world_size}; choose ddp or fsdp")
    if chosen_hook != "none" and chosen != "ddp":
        raise UsageError(f"hook {chosen_hook!r} is for ddp, not for {chosen}; choose none")
    folder = planned["JOB_FOLDER"]
    path = planned["CHECKPOINT"] or checkpoint
    return Settings(
        strategy=chosen,
        precision=chosen_precision,
        hook=chosen_hook,
        per_device_batch_size=_number(environment, "PER_DEVICE_BATCH_SIZE", per_device_batch_size),
        grad_accum_steps=_number(environment, "GRAD_ACCUM_STEPS", grad_accum_steps),
        learning_rate_factor=_factor(environment),
        checkpoint=None if path is None else Path(path),
        job_folder=None if folder is None else Path(folder),
        job_name=environment.get("GPUALLOC_JOB", "training"),
    )


def _number(environment: Mapping[str, str], name: str, own: int) -> int:
    text = environment.get(f"GPUALLOC_{name}", str(own))
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"{name.lower()} is {text!r}; choose a whole number above 0")
    return int(text)


def _factor(environment: Mapping[str, str]) -> float:
    text = environment.get("GPUALLOC_LEARNING_RATE_FACTOR", "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise UsageError(f"GPUALLOC_LEARNING_RATE_FACTOR is {text!r}; choose a number above 0")
    return factor
