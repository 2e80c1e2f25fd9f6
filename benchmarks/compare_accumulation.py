"""How far the averaged gradient is from the exact mean, by where 16-bit gradients are summed, at 2 to 64 ranks.

    python benchmarks/compare_accumulation.py --output benchmarks/results/accumulation_error.json

All ranks are simulated in this process with the arithmetic of each hook: gpualloc's kernels, and gloo's ring with a rounding at every
hop. At 2 and 4 ranks the same gradients go through the hooks themselves in real gloo ranks, and any bit that differs is an error.

Gradients are those of layers whose magnitudes are lognormal between 1e-8 and 1e1, half of them signal that the ranks share; also
times 65536, as a GradScaler starts. An error is relative to the mean magnitude over the ranks, mean(|g|): the mean itself may cancel.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.compared_hooks import attach
from gpualloc import _native, ops
from gpualloc.bench.environment import detect_environment
from gpualloc.cli.tables import json_text

WORLD_SIZES = (2, 4, 8, 64)
REAL_WORLD_SIZES = (2, 4)
LOSS_SCALES = (1.0, 65536.0)
NUM_LAYERS, LAYER_NUMEL = 50, 2048  # 2 x 64 divides their product, so that gloo's ring cuts it into equal chunks
# Times the loss scale: above it a contribution is no subnormal FP16 number, at 64 ranks either, and what is left is the sums' own.
NORMAL_MAGNITUDE = 2.0**-4
LARGEST_SUM = 2.0**15  # csrc/wire_scale.h


def random_gradients(world_size: int, loss_scale: float, seed: int) -> Tensor:
    """[world_size, numel] FP32; those of fewer ranks are the first rows of those of more."""
    generator = torch.Generator().manual_seed(seed)
    exponents = (torch.randn(NUM_LAYERS, 1, generator=generator) * 2.0 - 3.5).clamp(-8, 1)
    shared = torch.randn(NUM_LAYERS, LAYER_NUMEL, generator=generator)
    own = [torch.randn(NUM_LAYERS, LAYER_NUMEL, generator=generator) for _ in range(world_size)]
    return torch.stack([((shared + noise) * 10**exponents * loss_scale).flatten() for noise in own])


def ring_sum(wires: Tensor) -> Tensor:
    """[numel] sum of wires [world_size, numel] as gloo's ring: chunk c starts at rank c - 1, goes down, and is rounded at every hop."""
    world_size = len(wires)
    chunks = wires.view(world_size, world_size, -1)  # rank, chunk
    number = torch.arange(world_size)
    total = chunks[(number - 1) % world_size, number]
    for hop in range(2, world_size + 1):
        total = chunks[(number - hop) % world_size, number] + total
    return total.flatten()


def fp32_sum(wires: Tensor) -> Tensor:
    """[numel] sum in FP32, rounded once, by the kernel of the hook."""
    total = torch.empty_like(wires[0])
    _native.module().sum_shards(wires.flatten(), total)
    return total


def dynamic_scale(gradients: Tensor) -> float:
    """The wire scale once it has seen these gradients: 2 ** k, by which the largest comes between limit / 16 and limit / 8."""
    world_size = len(gradients)
    limit, largest = LARGEST_SUM / world_size, gradients.abs().max().item() / world_size
    scale = 2.0 ** min(24, math.frexp(limit)[1] - 3 - math.frexp(largest)[1])
    return max(2.0**-24, scale / 2 if largest * scale > limit / 8 else scale)


def through_fp16(gradients: Tensor, add: Callable[[Tensor], Tensor], scale_of: Callable[[Tensor], float]) -> Tensor:
    world_size, scale = len(gradients), scale_of(gradients)
    wires = torch.empty(gradients.shape, dtype=torch.float16)
    ops.pack_flat(gradients, wires.view(-1), scale / world_size)
    average = torch.empty_like(gradients[0])
    ops.unpack_flat(add(wires), average, 1 / scale)
    return average


# Hooks as compared_hooks.py names them -> their arithmetic.
HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda gradients: ring_sum(gradients / len(gradients)),
    "torch_fp16": lambda gradients: ring_sum(gradients.half() / len(gradients)).float(),
    "gpualloc_fp16:accumulate=wire:wire_scale=1.0": functools.partial(through_fp16, add=ring_sum, scale_of=lambda _: 1.0),
    "gpualloc_fp16:accumulate=fp32:wire_scale=1.0": functools.partial(through_fp16, add=fp32_sum, scale_of=lambda _: 1.0),
    "gpualloc_fp16:accumulate=wire": functools.partial(through_fp16, add=ring_sum, scale_of=dynamic_scale),
    "gpualloc_fp16:accumulate=fp32": functools.partial(through_fp16, add=fp32_sum, scale_of=dynamic_scale),
}


def errors(average: Tensor, gradients: Tensor, normal_magnitude: float) -> dict[str, float]:
    """Of one seed. Relative errors are those of finite averages, of all magnitudes and of the normal ones."""
    exact, magnitude = gradients.double().mean(0), gradients.double().abs().mean(0)
    finite = average.isfinite()
    relative = (average.double() - exact).abs() / magnitude
    normal = relative[finite & (magnitude >= normal_magnitude)]
    return {
        "max_relative": relative[finite].max().item(),
        "rms_relative": relative[finite].square().mean().sqrt().item(),
        "normal_max_relative": normal.max().item(),
        "normal_rms_relative": normal.square().mean().sqrt().item(),
        "flushed_share": ((average == 0) & (exact != 0)).double().mean().item(),
        "overflowed_share": (~finite).double().mean().item(),
    }


def over_seeds(per_seed: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    values = {name: [one[name] for one in per_seed] for name in per_seed[0]}
    return {name: {"median": statistics.median(of), "min": min(of), "max": max(of)} for name, of in values.items()}


Averages = dict[tuple[str, float, int], Tensor]  # (hook, loss scale, seed) -> average


def real_averages(world_size: int, seeds: list[int]) -> Averages:
    """What the hooks give in gloo ranks."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_real_rank, (world_size, seeds, folder), nprocs=world_size)
        averages: Averages = torch.load(f"{folder}/averages.pt", weights_only=True)
        return averages


def check_against(averages: Averages, world_size: int) -> None:
    """Raises SystemExit where a simulated bit is another one."""
    for (hook, loss_scale, seed), average in averages.items():
        simulated = HOOKS[hook](random_gradients(world_size, loss_scale, seed))
        num_different = (simulated.view(torch.int32) != average.view(torch.int32)).sum().item()
        if num_different:
            raise SystemExit(f"compare_accumulation: {hook}, {world_size} ranks, seed {seed}: {num_different} averages differ from gloo's")


class _Product(nn.Module):
    """loss = sum(weight * coefficient), so that the gradient is the coefficient; one parameter is one bucket."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(numel))

    def forward(self, coefficients: Tensor) -> Tensor:
        return (self.weight * coefficients).sum()


def _real_rank(rank: int, world_size: int, seeds: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(folder, "rendezvous").as_uri(), rank=rank, world_size=world_size)
    averages = {}
    for hook in HOOKS:
        for loss_scale in LOSS_SCALES:
            for seed in seeds:
                gradient = random_gradients(world_size, loss_scale, seed)[rank]
                ddp = DistributedDataParallel(_Product(gradient.numel()))
                attach(hook, ddp)
                for _ in range(2):  # the first step of a dynamic scale goes in FP32
                    ddp.zero_grad()
                    ddp(gradient).backward()
                averages[hook, loss_scale, seed] = ddp.module.weight.grad
    if rank == 0:
        torch.save(averages, f"{folder}/averages.pt")
    dist.destroy_process_group()


def measure(world_sizes: tuple[int, ...], seeds: list[int]) -> list[dict[str, Any]]:
    rows = []
    for loss_scale in LOSS_SCALES:
        for world_size in world_sizes:
            per_hook: dict[str, list[dict[str, float]]] = {hook: [] for hook in HOOKS}
            for seed in seeds:
                gradients = random_gradients(world_size, loss_scale, seed)
                for hook, average in HOOKS.items():
                    per_hook[hook].append(errors(average(gradients), gradients, NORMAL_MAGNITUDE * loss_scale))
            rows += [{"loss_scale": loss_scale, "world_size": world_size, "hook": hook, **over_seeds(of)} for hook, of in per_hook.items()]
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'loss scale':>10} {'ranks':>5}  {'hook':46}{'max':>9}{'rms':>9}{'max normal':>12}{'rms normal':>12}{'to 0':>9}{'to inf':>9}")
    for row in rows:
        figures = [row[name]["median"] for name in ("max_relative", "rms_relative", "normal_max_relative", "normal_rms_relative")]
        shares = [row[name]["median"] for name in ("flushed_share", "overflowed_share")]
        numbers = "{:9.1e}{:9.1e}{:12.1e}{:12.1e}{:9.3%}{:9.3%}".format(*figures, *shares)
        print(f"{row['loss_scale']:10.0f} {row['world_size']:5}  {row['hook']:46}{numbers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--world-sizes", default=",".join(map(str, WORLD_SIZES)), help="powers of two up to 64 (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=9, help="sets of gradients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31), help="of the first one (default: a new one)")
    arguments = parser.parse_args()
    if not _native.available_or_warn():
        raise SystemExit("compare_accumulation: the compiled extension is missing; run: pip install .")
    torch.set_num_threads(1)  # small tensors
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    world_sizes = tuple(int(number) for number in arguments.world_sizes.split(","))
    seeds = [arguments.seed + number for number in range(arguments.seeds)]
    checked = [world_size for world_size in REAL_WORLD_SIZES if world_size in world_sizes]
    for world_size in checked:
        check_against(real_averages(world_size, seeds), world_size)
    rows = measure(world_sizes, seeds)
    print_rows(rows)
    if arguments.output:
        result = {
            "command": " ".join(sys.argv),
            "started_at_utc": started,
            "environment": vars(detect_environment("cpu")),
            "seeds": seeds,
            "numel": NUM_LAYERS * LAYER_NUMEL,
            "normal_magnitude": NORMAL_MAGNITUDE,
            "equal_to_gloo_bit_for_bit": {"world_sizes": checked, "hooks": list(HOOKS), "loss_scales": list(LOSS_SCALES)},
            "rows": rows,
        }
        arguments.output.write_text(json_text(result) + "\n")


if __name__ == "__main__":
    main()
