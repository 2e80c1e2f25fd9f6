"""DDP training steps with every gradient hook side by side, in turns within one run, so that drift hits all alike.

    sudo python benchmarks/compare_hooks.py --lab 2,4 --rate 1gbit,200mbit,10gbit     # gloo, hosts of a network lab
    python benchmarks/compare_hooks.py --nccl-ranks 2,4                               # NCCL over TCP, sharing GPU 0 under MPS
    python benchmarks/compare_hooks.py --gpus 2                                       # NCCL, one rank per GPU
    python benchmarks/compare_hooks.py --local 2                                      # gloo over loopback

What a hook refuses is skipped with its reason; one that dies is dropped by name and the others run again. docs/network_lab.md says
what the figures mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import compare_rank, comparison_table, network_lab
from benchmarks.compare_rank import ComparisonReport, Order
from benchmarks.compared_hooks import DEFAULT_HOOKS, check_name
from benchmarks.compared_models import COMPARED_MODELS, why_missing
from gpualloc.bench import mps
from gpualloc.bench.environment import count_gpus, detect_environment
from gpualloc.bench.interruption import Interrupted, interruptible
from gpualloc.bench.ranks import started_ranks, wait_for_ranks
from gpualloc.cli.tables import json_text
from gpualloc.errors import CaseFailedError

_LAB = f"compare{os.getpid()}"  # the lab's name: several may be up side by side
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # of gloo ranks: where torch sees a GPU, its PowerSGD synchronises a CPU device with it, and dies
Command = list[str]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the ranks of a case run."""

    world_size: int
    link: str  # in words
    backend: str
    ranks_per_gpu: int = 1
    has_daemon: bool = False  # an MPS daemon of its own for every model
    has_own_devices: bool = False  # a GPU for each rank
    interface: str | None = None  # whose bytes are counted
    measured_mbit_s: list[float] | None = None  # by one TCP stream a host, all at once
    environment: Callable[[int], dict[str, str]] = lambda rank: dict(os.environ)
    wrap_command: Callable[[int, Command], Command] = lambda rank, command: command


def placements(arguments: argparse.Namespace) -> Generator[Placement, None, None]:
    """The placements asked for; a lab is up until the next one is asked for."""
    for num_hosts in arguments.lab:
        for rate in arguments.rate:
            with _lab_placement(num_hosts, rate) as placement:
                yield placement
    cores = sorted(os.sched_getaffinity(0))
    for world_size in arguments.local:
        yield Placement(
            world_size=world_size,
            link="gloo over loopback",
            backend="gloo",
            environment=lambda rank: {**os.environ, **_NO_GPU, "GLOO_SOCKET_IFNAME": "lo"},
            wrap_command=lambda rank, command: ["taskset", "-c", str(cores[rank % len(cores)]), *command],
        )
    for world_size in arguments.nccl_ranks:
        yield Placement(
            world_size=world_size,
            link=f"NCCL over loopback TCP, {world_size} ranks on one GPU",
            backend="nccl",
            ranks_per_gpu=world_size,
            has_daemon=True,
            environment=lambda rank: {**os.environ, **mps.sharing_environment(rank)},
        )
    for world_size in arguments.gpus:
        yield Placement(world_size=world_size, link=f"NCCL, {world_size} GPUs", backend="nccl", has_own_devices=True)


@contextmanager
def _lab_placement(num_hosts: int, rate: str) -> Iterator[Placement]:
    num_cores = len(os.sched_getaffinity(0))
    sharing = f" on {num_cores} cores" if num_cores < num_hosts else ""
    with network_lab.network_lab(num_hosts, rate, name=_LAB) as lab:
        yield Placement(
            world_size=num_hosts,
            link=f"gloo, {num_hosts} hosts{sharing}, links of {rate}",
            backend="gloo",
            interface=network_lab.INTERFACE,
            measured_mbit_s=[flow.mbit_s for flow in lab.measure()],
            environment=lambda rank: {**lab.environment(os.environ), **_NO_GPU},
            wrap_command=lab.command,
        )


def compare(placement: Placement, model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The case of one model at one placement: its figures, hooks that died among them as failed."""
    case: dict[str, Any] = {
        "model": model,
        "description": COMPARED_MODELS[model].description,
        "world_size": placement.world_size,
        "link": placement.link,
        "measured_mbit_s": placement.measured_mbit_s,
    }
    reason = why_missing(model)
    if reason is not None:
        return {**case, "skipped": reason}
    hooks, died = list(arguments.hooks), {}
    while True:
        try:
            report, how = run_ranks(placement, model, hooks, arguments)
        except _HookDiedError as death:
            print(f"  {death}", file=sys.stderr)
            if death.hook not in hooks:  # before the first hook's turn, or in the compute steps
                return {**case, "failed": str(death)}
            hooks.remove(death.hook)
            died[death.hook] = str(death)
            continue
        rows = comparison_table.rows(report, arguments.hooks, died)
        return {**case, "link": placement.link + how, "compute_ms": comparison_table.compute_ms(report), "hooks": rows}


class _HookDiedError(Exception):
    def __init__(self, hook: str, error: CaseFailedError) -> None:
        super().__init__(f"died in the turn of {hook or 'no hook'}: {error}")
        self.hook = hook


def run_ranks(
    placement: Placement, model: str, hooks: list[str], arguments: argparse.Namespace, *, rehearsal: dict[str, Any] | None = None
) -> tuple[ComparisonReport, str]:
    """One process group, real or rehearsed. Returns its report, and how ranks share a GPU where they do."""
    order = Order(
        model=model,
        hooks=hooks,
        backend=placement.backend,
        world_size=placement.world_size,
        ranks_per_gpu=placement.ranks_per_gpu,
        interface=placement.interface if rehearsal is None else None,
        num_rounds=arguments.rounds,
        num_steps=arguments.steps,
        num_settle_steps=arguments.settle_steps,
        num_warmup_steps=arguments.warmup,
        max_warmup_steps=arguments.max_warmup,
        one_at_a_time=arguments.one_at_a_time,
        timeout_s=arguments.timeout_s,
        rehearsal=rehearsal,
    )
    # Where ranks share a machine's memory, cores' siblings or a GPU, a rehearsing rank has as many neighbours as a real one.
    num_ranks = 1 if rehearsal is not None and placement.has_own_devices else placement.world_size
    with ranks_placed(placement) as (folder, environments, how):
        compare_rank.write_order(folder, order)
        try:
            with started_ranks(
                folder, environments[:num_ranks], worker="benchmarks.compare_rank", wrap_command=placement.wrap_command
            ) as processes:
                wait_for_ranks(folder, processes, timeout_s=arguments.timeout_s)
        except CaseFailedError as error:
            raise _HookDiedError(compare_rank.read_turn(folder, error.rank or 0), error) from error
        return compare_rank.read_report(folder), how


@contextmanager
def ranks_placed(placement: Placement) -> Iterator[tuple[Path, list[dict[str, str]], str]]:
    """(a folder, each rank's environment, how they share a GPU) for one group of processes."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gpualloc-compare-", ignore_cleanup_errors=True)))
        environments, how = [placement.environment(rank) for rank in range(placement.world_size)], ""
        if placement.has_daemon:
            places = cleanup.enter_context(mps.mps_daemon(folder))
            how = ", time-sliced" if places is None else ", MPS slices"
            if places is not None:
                environments = [mps.client_environment(one, places, ranks_per_gpu=placement.ranks_per_gpu) for one in environments]
        yield folder, environments, how


def main() -> int:
    arguments = parse_arguments(__doc__, default_hooks=DEFAULT_HOOKS)
    device = "cuda" if arguments.nccl_ranks or arguments.gpus else "cpu"
    models = arguments.models or [name for name, model in COMPARED_MODELS.items() if model.device == device]
    cases: list[dict[str, Any]] = []
    result = {
        "command": " ".join(sys.argv),
        "started_at_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": dataclasses.asdict(detect_environment(device)),
        "variables": {name: value for name, value in os.environ.items() if name.startswith(("CUDA_", "NCCL_", "GLOO_", "OMP_", "TORCH_"))},
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "interleaved": not arguments.one_at_a_time,
        "cases": cases,
    }
    try:
        with interruptible(), closing(placements(arguments)) as wanted:
            for placement in wanted:
                for model in models:
                    print(f"{model}, {placement.link}: {len(arguments.hooks)} hooks", file=sys.stderr)
                    cases.append(compare(placement, model, arguments))
                    comparison_table.print_case(cases[-1])
                    if arguments.output:  # after every case: a later one may be cut short
                        arguments.output.write_text(json_text(result) + "\n")
    except network_lab.LabError as error:
        print(f"compare_hooks: {error}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        return interruption.exit_code
    has_failed = any("failed" in case or any(row["status"] == "failed" for row in case.get("hooks", ())) for case in cases)
    return 1 if has_failed else 0


def parse_arguments(description: str | None, *, default_hooks: Sequence[str]) -> argparse.Namespace:
    """Where to measure, what and how long."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    for option, what in (
        ("--lab", "hosts of a network lab, with gloo; needs root"),
        ("--local", "gloo ranks on this machine, link not shaped"),
        ("--nccl-ranks", "NCCL ranks that share GPU 0"),
        ("--gpus", "GPUs, one NCCL rank on each"),
    ):
        where.add_argument(option, type=_numbers, default=[], metavar="N,...", help=what)
    parser.add_argument("--rate", type=_names, default=["1gbit"], help="of the lab's links, comma list (default: 1gbit)")
    parser.add_argument("--hooks", type=_hooks, default=list(default_hooks), help=f"comma list (default: {','.join(default_hooks)})")
    parser.add_argument("--models", type=_models, help=f"comma list of {', '.join(COMPARED_MODELS)} (default: those of the device)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a hook in a round (default: %(default)s)")
    parser.add_argument("--settle-steps", type=int, default=1, help="untimed steps before them (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=6, help="steps of a hook before the first round (default: %(default)s)")
    parser.add_argument("--max-warmup", type=int, default=120, help="as many at most for hooks that decide (default: %(default)s)")
    parser.add_argument("--one-at-a-time", action="store_true", help="all rounds of a hook, then the next: less memory, but drift counts")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="of a model with all its hooks (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    num_gpus = count_gpus()
    if (arguments.nccl_ranks and num_gpus == 0) or max(arguments.gpus, default=0) > num_gpus:
        parser.error(f"torch sees {num_gpus} GPUs here; use --lab or --local")
    return arguments


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{min(numbers)} ranks")
    return numbers


def _hooks(text: str) -> list[str]:
    for hook in text.split(","):
        try:
            check_name(hook)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text.split(",")


def _models(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in COMPARED_MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose of {', '.join(COMPARED_MODELS)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
