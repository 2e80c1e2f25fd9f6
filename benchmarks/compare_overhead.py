"""What each hook costs where no wire hides it: time per bucket at world size 1, and on CUDA the memory it takes.

    python benchmarks/compare_overhead.py --output benchmarks/results/overhead_h200.json     # NCCL on the first GPU
    python benchmarks/compare_overhead.py --device cpu                                       # gloo

Time: 100 layers that are a bucket each, one DDP model per hook, in turns; every round begins with another hook. Host time is that of the
call of backward(), backward time goes on until the device is done, step time includes the forward pass; differences and ratios to DDP
without a hook are formed within each round.

Memory: gradients of real models' shapes, `gradient_as_bucket_view=True`, one hook at a time: the most that was allocated in a step beyond
what DDP holds before it has a hook, which is the parameters and the buckets. Part of it is the same for all: a gradient before DDP
copies it into its bucket.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.compared_hooks import attach, check_name
from benchmarks.parameter_lists import shapes
from gpualloc.bench.environment import detect_environment

HOOKS = ("none", "torch_allreduce", "torch_fp16", "gpualloc_fp32", "gpualloc_fp16", "gpualloc_auto")
MEMORY_MODELS = ("mobilenet_v2", "gpt2")
WIDTH, BATCH = 64, 8
TIMES = ("host_s", "backward_s", "step_s")
Figures = dict[str, list[float]]  # of each round


class Contender:
    """One hook, registered with a model of its own."""

    def __init__(self, hook: str, num_buckets: int, device: torch.device) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(num_buckets))).to(device)
        self.ddp = DistributedDataParallel(net, gradient_as_bucket_view=True, bucket_cap_mb=WIDTH * WIDTH * 4 / 2**20)
        self.attached = attach(hook, self.ddp)
        self.inputs = torch.randn(BATCH, WIDTH, device=device)
        self.device = device

    def steps(self, count: int) -> list[float]:
        """Mean seconds of TIMES."""
        sums = [0.0] * len(TIMES)
        for _ in range(count):
            begin = time.perf_counter()
            self.ddp.zero_grad()
            loss = self.ddp(self.inputs).square().mean()
            synchronize(self.device)
            called = time.perf_counter()
            loss.backward()
            returned = time.perf_counter()
            synchronize(self.device)
            done = time.perf_counter()
            for index, seconds in enumerate((returned - called, done - called, done - begin)):
                sums[index] += seconds
        return [total / count for total in sums]

    def num_buckets(self) -> int:
        return len(self.ddp._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(","))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_times(
    hooks: Sequence[str], device: torch.device, *, num_buckets: int, rounds: int, steps: int, warmup: int
) -> dict[str, Figures]:
    """Of each hook, per round."""
    contenders = {hook: Contender(hook, num_buckets, device) for hook in hooks}
    for hook, contender in contenders.items():
        contender.steps(max(warmup, 3))  # DDP rebuilds its buckets in step 2 and says so in step 3
        if contender.num_buckets() != num_buckets:
            raise RuntimeError(f"{hook}: DDP made {contender.num_buckets()} buckets, not {num_buckets}")
    figures: dict[str, Figures] = {hook: {name: [] for name in TIMES} for hook in hooks}
    for number in range(rounds):
        first = number % len(hooks)
        for hook in (*hooks[first:], *hooks[:first]):
            for name, seconds in zip(TIMES, contenders[hook].steps(steps), strict=True):
                figures[hook][name].append(seconds)
    return figures


class _Gradients(nn.Module):
    """loss = sum of all parameters' sums, so that the backward pass is gradients and nothing else."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in shapes(model))

    def forward(self) -> Tensor:
        return torch.stack([weight.sum() for weight in self.weights]).sum()


def measure_memory(hook: str, model: str, device: torch.device, steps: int) -> dict[str, int]:
    """Bytes: of the gradients, and at most beyond parameters and buckets in the first three steps and in those after them."""
    ddp = DistributedDataParallel(_Gradients(model).to(device), gradient_as_bucket_view=True)
    base = torch.cuda.memory_allocated(device)
    attach(hook, ddp)
    peaks = []
    for count in (3, steps):  # DDP rebuilds its buckets in step 2; from step 3 on a hook has the memory that it keeps
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(count):
            ddp.zero_grad()
            ddp().backward()
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device) - base)
    return {
        "gradient_bytes": sum(4 * weight.numel() for weight in ddp.parameters()),
        "first_steps_bytes": peaks[0],
        "steps_bytes": peaks[1],
    }


def all_memory(hooks: Sequence[str], models: Sequence[str], device: torch.device, steps: int) -> dict[str, dict[str, dict[str, int]]]:
    """Model -> hook -> figures."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for model in models:
        found[model] = {}
        for hook in hooks:
            found[model][hook] = measure_memory(hook, model, device, steps)
            gc.collect()  # DDP and its hook hold each other
            torch.cuda.empty_cache()
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def rows(figures: dict[str, Figures], num_buckets: int) -> list[dict[str, Any]]:
    """One a hook; the first one is what the others are compared with."""
    base = next(iter(figures.values()))
    found = []
    for hook, times in figures.items():
        row: dict[str, Any] = {"hook": hook}
        for name in TIMES:
            kind = name.removesuffix("_s")
            row[f"{kind}_us_per_bucket"] = spread([seconds / num_buckets * 1e6 for seconds in times[name]])
            row[f"{kind}_ratio"] = spread([seconds / other for seconds, other in zip(times[name], base[name], strict=True)])
            row[f"{kind}_added_us_per_bucket"] = spread(
                [(seconds - other) / num_buckets * 1e6 for seconds, other in zip(times[name], base[name], strict=True)]
            )
        found.append(row)
    return found


def print_rows(rows: list[dict[str, Any]], memory: dict[str, dict[str, dict[str, int]]]) -> None:
    print(f"{'us per bucket':20}{'host':>8}{'p10-p90':>16}{'ratio':>8}{'backward':>10}{'p10-p90':>16}{'ratio':>8}{'step':>8}{'ratio':>8}")
    for row in rows:
        cells = []
        for kind, width in (("host", 8), ("backward", 10), ("step", 8)):
            of = row[f"{kind}_us_per_bucket"]
            cells.append(f"{of['median']:{width}.1f}")
            if kind != "step":
                cells.append(f"{of['p10']:.1f}-{of['p90']:.1f}".rjust(16))
            cells.append(f"{row[f'{kind}_ratio']['median']:8.3f}")
        print(f"{row['hook']:20}{''.join(cells)}")
    for model, per_hook in memory.items():
        print(f"\n{model + ', MiB':24}{'first steps':>12}{'then':>10}")
        for hook, of in per_hook.items():
            print(f"{hook:24}{of['first_steps_bytes'] / 2**20:12.2f}{of['steps_bytes'] / 2**20:10.2f}")


def main() -> None:
    arguments = _parse()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(0)
    else:
        torch.set_num_threads(1)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=Path(folder, "rendezvous").as_uri(), rank=0, world_size=1)
        figures = measure_times(
            arguments.hooks,
            device,
            num_buckets=arguments.buckets,
            rounds=arguments.rounds,
            steps=arguments.steps,
            warmup=arguments.warmup,
        )
        gc.collect()
        memory = all_memory(arguments.hooks, arguments.memory_models, device, arguments.steps) if device.type == "cuda" else {}
        dist.destroy_process_group()
    table = rows(figures, arguments.buckets)
    print_rows(table, memory)
    if not memory:
        print("\nmemory is measured on CUDA alone")
    if arguments.output:
        result = {
            "command": " ".join(sys.argv),
            "started_at_utc": started,
            "environment": vars(detect_environment(device.type)),
            "load_average": os.getloadavg()[0],
            "buckets": arguments.buckets,
            "rounds": arguments.rounds,
            "steps_per_round": arguments.steps,
            "times": table,
            "round_times_s": figures,
            "memory": memory,
        }
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--hooks", type=_hooks, default=list(HOOKS), help=f"comma list, the first to compare with (default: {','.join(HOOKS)})"
    )
    parser.add_argument("--buckets", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="of a hook in a round (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=20, help="steps of a hook before the first round (default: %(default)s)")
    parser.add_argument(
        "--memory-models", type=lambda text: text.split(","), default=list(MEMORY_MODELS), help=f"default: {','.join(MEMORY_MODELS)}"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def _hooks(text: str) -> list[str]:
    for hook in text.split(","):
        try:
            check_name(hook)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text.split(",")


if __name__ == "__main__":
    main()
