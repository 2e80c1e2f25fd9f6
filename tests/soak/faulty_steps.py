"""Thousands of DDP steps with a hook and random faults, on one rank; what it saw is compared by test_hook.py."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import psutil
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gpualloc

WIDTHS = (24, 96, 64, 64, 8)
BATCH = 4
LOOK_EVERY = 100  # steps between two looks at weights and memory
BUCKET_CAPS_MIB = (0.005, 0.02, 25.0)


@dataclass(kw_only=True)
class Seen:
    """Of one rank."""

    weights: list[str] = field(default_factory=list)  # digests, every LOOK_EVERY steps and at the end
    rss_bytes: list[int] = field(default_factory=list)  # at the same steps
    skipped: list[int] = field(default_factory=list)  # steps whose gradients were not finite
    spoilt: list[int] = field(default_factory=list)  # steps in which this rank made them so
    rebuilds: int = 0
    accumulated: int = 0  # passes under no_sync
    steps_counted: int = 0  # by the hook, over its state dicts
    wire_scale: float = 1.0


def train(rank: int, world_size: int, wire: str, num_steps: int, seed: int) -> Seen:
    """Every choice that ranks must make alike comes from a generator that they share, faults of a rank from its own."""
    common, own = random.Random(seed), random.Random(1000 * seed + rank)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    model = nn.Sequential(*layers)
    target = nn.Linear(WIDTHS[0], WIDTHS[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    torch.manual_seed(seed + 1 + rank)
    seen, process = Seen(), psutil.Process()
    ddp, handle = wrapped(model, wire, 25.0)
    for step in range(num_steps):
        if common.random() < 0.004:  # other buckets, and the hook's state as from a checkpoint
            state = handle.state_dict()
            ddp, handle = wrapped(model, wire, common.choice(BUCKET_CAPS_MIB))
            handle.load_state_dict(state)
            seen.rebuilds += 1
        passes = common.choice((1, 1, 1, 2, 3))
        factor = own.choice((float("inf"), float("nan"), 1e38)) if own.random() < 0.01 else 1.0
        if not math.isfinite(factor):
            seen.spoilt.append(step)
        for number in range(passes):
            is_last = number == passes - 1
            seen.accumulated += not is_last
            if own.random() < 0.002:
                time.sleep(own.random() * 0.02)  # a rank that comes late
            with nullcontext() if is_last else ddp.no_sync():
                batch = torch.randn(BATCH, WIDTHS[0])
                loss = nn.functional.mse_loss(ddp(batch), target(batch).detach()) / passes
                (loss * (factor if is_last else 1.0)).backward()
        finite = not bool(handle.found_inf())
        if finite:
            handle.clip_grad_norm_(1.0)
            optimizer.step()
        else:
            seen.skipped.append(step)
        optimizer.zero_grad()
        if (step + 1) % LOOK_EVERY == 0:
            seen.weights.append(digest(model))
            seen.rss_bytes.append(process.memory_info().rss)
    stats = handle.stats()
    seen.steps_counted, seen.wire_scale = stats.steps, stats.wire_scale
    return seen


def wrapped(model: nn.Module, wire: str, bucket_cap_mib: float) -> tuple[DistributedDataParallel, gpualloc.comm.HookHandle]:
    """The model in a DDP of its own, with a fresh hook."""
    ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mib, gradient_as_bucket_view=True)
    name, _, error_feedback = wire.partition("+")
    return ddp, gpualloc.register_comm_hook(ddp, wire=name, error_feedback=bool(error_feedback) or None)


def digest(model: nn.Module) -> str:
    """Of all bits of the weights."""
    weights: list[Tensor] = [parameter.detach().reshape(-1) for parameter in model.parameters()]
    return hashlib.sha256(torch.cat(weights).numpy().tobytes()).hexdigest()
