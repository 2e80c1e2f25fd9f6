"""`gpualloc rehearse`: a training script on GPUs that are not there."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpualloc.cli.progress import show_parts
from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpualloc.rehearsal.cluster import Cluster
    from gpualloc.rehearsal.script_run import RehearsedSize, Scaling

_MAX_GPUS, _MAX_STEPS = 2**16, 10**5
_FULL_WIDTH = 90  # columns: below it some are left out
# What no rehearsal of one rank can know: printed with every result.
LIMITS = (
    "modelled: the links. Not in the figures: SMs that NCCL's kernels take from computing, ranks that are slower than others, "
    "and a disk or cores that the ranks of a node share to read data"
)


def rehearse(
    ctx: typer.Context,
    script: Annotated[list[str], typer.Argument(metavar="-- SCRIPT [ARGS]...", help="The training script and its arguments.")],
    gpus: Annotated[str, typer.Option(metavar="LIST", help="Numbers of GPUs, such as 1,2,4,8.")] = "1,2,4,8",
    link: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Between the GPUs of a node: nvlink4, pcie5, ... or a calibrated link.")
    ] = None,
    network: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="Between nodes: ib_ndr, ethernet_100g, ...")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a node (default: 8).")] = None,
    scaling: Annotated[
        Literal["weak", "strong"],
        typer.Option(help="weak: a GPU's batch stays as it is; strong: the script divides one batch among the GPUs."),
    ] = "weak",
    steps: Annotated[int, typer.Option(help="Steps to time, and as many over links that take no time.")] = 20,
    warmup_steps: Annotated[int, typer.Option(help="Steps before them; more until gpualloc's hooks have decided.")] = 10,
    timeout_s: Annotated[float, typer.Option(help="Longest time for one number of GPUs, in seconds.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Rehearse a training script on more GPUs than there are: it runs as rank 0 of N, computing for real over modelled links.

    The script is not changed: its init_process_group, whatever the backend, gets no peers, and each collective takes the time that it
    would take on the links. DDP, FSDP2, tensor parallel, hooks and memory are real.

    It is stopped once enough steps are timed. What it prints is shown if it fails.

    Examples:
      gpualloc rehearse --link nvlink4 -- train.py --batch-size 32
      gpualloc rehearse --gpus 1,8,16,32 --link nvlink4 --network ib_ndr -- train.py
      gpualloc rehearse --gpus 1,2,4 --gpus-per-node 1 --network ethernet_10g --json -- -m package.train
    """
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.bench.notation import parse_numbers
    from gpualloc.profiling.script import parse_script
    from gpualloc.rehearsal.cluster import make_cluster
    from gpualloc.rehearsal.script_run import rehearse_script

    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a rehearsal is one process and this is one of several ranks; start it without torchrun")
    sizes = sorted(set(parse_numbers("--gpus", gpus)))
    for option, value, highest in (("--gpus", sizes[0], _MAX_GPUS), ("--gpus", sizes[-1], _MAX_GPUS), ("--steps", steps, _MAX_STEPS)):
        if not 1 <= value <= highest:
            raise UsageError(f"{option} {value} is out of range; choose 1 to {highest:,}")
    if not 1 <= warmup_steps <= _MAX_STEPS or timeout_s <= 0:
        raise UsageError(f"--warmup-steps {warmup_steps} and --timeout-s {timeout_s:g} must be above 0, the first at most {_MAX_STEPS:,}")
    cluster = make_cluster(sizes, gpus_per_node=gpus_per_node, link=link, network=network)
    what = parse_script(script)
    done: list[RehearsedSize] = []
    try:
        with interruptible(), show_parts([1.0] * len(sizes)) as parts:
            for size in sizes:
                parts.begin(f"as one of {size} GPUs: {what.command}")
                done.append(
                    rehearse_script(
                        what,
                        size,
                        cluster,
                        num_warmup_steps=warmup_steps,
                        num_steps=steps,
                        timeout_s=timeout_s,
                        show_log=lambda text: print(text, file=sys.stderr),
                    )
                )
                parts.end(f"{what.command} as one of {size} GPUs: {_came_out(done[-1])}")
    except Interrupted as interruption:
        _say(f"interrupted ({interruption}); what was rehearsed before follows")
        if done:
            _print(done, cluster, what.command, scaling, as_json=as_json)
        raise typer.Exit(interruption.exit_code) from None
    _print(done, cluster, what.command, scaling, as_json=as_json)
    if any(size.steps is None for size in done):
        raise typer.Exit(1)


def _came_out(size: RehearsedSize) -> str:
    return f"failed: {size.failure}" if size.steps is None else f"{size.steps.step_time_s * 1e3:.2f} ms a step"


def _print(sizes: Sequence[RehearsedSize], cluster: Cluster, command: str, scaling: Scaling, *, as_json: bool) -> None:
    from dataclasses import asdict

    from gpualloc.cli.tables import print_json
    from gpualloc.rehearsal.link_model import load_link
    from gpualloc.rehearsal.script_run import speedups

    ratios = speedups(sizes, scaling)
    if not as_json:
        return _print_table(sizes, ratios, cluster, command, scaling)
    links = {level: load_link(name).model_dump(mode="json") for level, name in cluster._asdict().items() if isinstance(name, str)}
    rows = []
    for size, ratio in zip(sizes, ratios, strict=True):
        row: dict[str, Any] = asdict(size)
        if size.steps is not None:
            row["steps"]["exposed_comm_s"] = size.steps.exposed_comm_s
        rows.append({**row, "speedup": ratio, "scaling_efficiency": None if ratio is None else ratio / size.num_gpus})
    print_json({"command": command, "cluster": cluster._asdict(), "links": links, "scaling": scaling, "sizes": rows, "limits": LIMITS})
    return None


def _print_table(sizes: Sequence[RehearsedSize], ratios: Sequence[float | None], cluster: Cluster, command: str, scaling: Scaling) -> None:
    from rich.text import Text

    from gpualloc.cli.tables import output_console, printable, text_table
    from gpualloc.rehearsal.link_model import load_link
    from gpualloc.rehearsal.script_run import unequal_compute_s

    console = output_console()
    for size in sizes:
        if size.failure is not None:
            console.print(Text(printable(f"{size.num_gpus} GPUs failed: {size.failure}"), style="red"), soft_wrap=True)
    device = next((size.steps.device for size in sizes if size.steps is not None), None)
    if device is None:
        return
    console.print(Text(printable(f"{command}, rehearsed on one {device}"), style="bold"), soft_wrap=True)
    columns: tuple[str, ...] = ("GPUs", "step ms", "p10-p90", "compute ms", "exposed ms", "comm ms", "speed-up", "efficiency", "peak GiB")
    if console.width < _FULL_WIDTH:
        columns = tuple(name for name in columns if name not in ("p10-p90", "comm ms", "compute ms"))
    table = text_table(*columns, right=columns)
    for size, ratio in zip(sizes, ratios, strict=True):
        if size.steps is None or ratio is None:
            continue
        steps = size.steps
        cells = {
            "GPUs": str(size.num_gpus),
            "step ms": f"{steps.step_time_s * 1e3:.2f}",
            "p10-p90": f"{steps.step_time_low_s * 1e3:.2f}-{steps.step_time_high_s * 1e3:.2f}",
            "compute ms": f"{steps.compute_time_s * 1e3:.2f}",
            "exposed ms": f"{steps.exposed_comm_s * 1e3:.2f}",
            "comm ms": f"{steps.comm_time_s * 1e3:.2f}",
            "speed-up": f"{ratio:.2f}x",
            "efficiency": f"{ratio / size.num_gpus:.0%}",
            "peak GiB": f"{steps.peak_memory_bytes / 2**30:.2f}",
        }
        table.add_row(*(cells[name] for name in columns))
    console.print(table)
    console.print()
    for name in (cluster.link, cluster.network):
        if name is not None:
            model = load_link(name)
            where = "inside a node" if model.level == "node" else "between nodes"
            console.print(Text(printable(f"{name} {where}: {model.title}, busbw {model.busbw_gb_s:g} GB/s"), style="dim"))
    batch = "a GPU's batch stays as it is" if scaling == "weak" else "one batch is divided among the GPUs"
    console.print(Text(f"{scaling} scaling: {batch}; comm: a step's collectives, each alone on its link", style="dim"))
    console.print(Text(LIMITS, style="dim"))
    unequal_s = unequal_compute_s(sizes, scaling)
    if unequal_s is not None:
        least_ms, most_ms = (seconds * 1e3 for seconds in unequal_s)
        doubt = (
            f"~ computing alone took {least_ms:.2f} to {most_ms:.2f} ms: unless the step differs, as with sharded models, that is "
            "noise of this machine, and the efficiencies are no more certain; try --steps 200, and nothing else beside it"
        )
        console.print(Text(doubt, style="yellow"))


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
