"""`gpualloc calibrate`: measures the link that a rehearsal and a forecast reckon with."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpualloc.errors import GpuallocError, UsageError

if TYPE_CHECKING:
    from gpualloc.rehearsal.link_model import LinkModel

_BYTES = re.compile(r"(\d+)(KiB|MiB|GiB)?")
_UNITS = {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def calibrate(
    name: Annotated[
        str, typer.Option(metavar="LINK", help="What the link is called from now on; with torchrun -node or -network follows.")
    ],
    gpus: Annotated[int | None, typer.Option(help="GPUs of this machine to measure between (default: all); without torchrun.")] = None,
    backend: Annotated[
        Literal["auto", "nccl", "gloo"], typer.Option(help="auto: NCCL where there are two GPUs or more, else gloo.")
    ] = "auto",
    ranks: Annotated[int, typer.Option(help="gloo ranks to start; without torchrun.")] = 2,
    max_bytes: Annotated[str, typer.Option(metavar="BYTES", help="Of the largest collective: 67108864 or 64MiB.")] = "256MiB",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the model there, not among the links known by name.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest time for the whole, in seconds.")] = 1800.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the model as JSON.")] = False,
) -> None:
    """Calibrate a link: run collectives between real ranks, alone, and keep what they took as a link model.

    All-reduce, all-gather, reduce-scatter, broadcast and messages from 1 KiB up, as nccl-tests times them; several at a time; and with
    gloo, the CPU time that they take from a rank that computes.

    Alone it starts ranks on this machine. Under torchrun it is one of the ranks: between the GPUs of a node it measures NAME-node, between
    nodes NAME-network, with all GPUs of a node at it.

    Examples:
      gpualloc calibrate --name our-box
      gpualloc calibrate --name lan --backend gloo --ranks 4 --max-bytes 16MiB
      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint host:29500 --no-python gpualloc calibrate --name ours
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(f"--name {name!r}: use letters, digits, '-', '_' and '.', so that it can be a file's name")
    found = _BYTES.fullmatch(max_bytes)
    num_bytes = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 2**14 <= num_bytes <= 2**34:
        raise UsageError(f"--max-bytes {max_bytes} is out of range; choose 16KiB to 16GiB")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        links = _calibrate_as_rank(name, backend, num_bytes, timeout_s)
    else:
        links = [_calibrate_here(name, backend, num_gpus=gpus, num_ranks=ranks, num_bytes=num_bytes, timeout_s=timeout_s)]
    if os.environ.get("RANK", "0") == "0":
        _keep(links, output, as_json=as_json)


def _calibrate_here(
    name: str, backend: Literal["auto", "nccl", "gloo"], *, num_gpus: int | None, num_ranks: int, num_bytes: int, timeout_s: float
) -> LinkModel:
    from gpualloc.bench.environment import count_gpus
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.rehearsal.calibrate_ranks import calibrate_ranks

    available = count_gpus()
    if backend == "auto":
        backend = "nccl" if available > 1 else "gloo"
    count = (num_gpus or available) if backend == "nccl" else num_ranks
    if backend == "nccl" and not 2 <= count <= available:
        raise UsageError(f"NCCL links two GPUs or more and --gpus {count} of {available} is not possible; or use --backend gloo")
    if not 2 <= count <= 256:
        raise UsageError(f"--ranks {count} is out of range; choose 2 to 256")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def pinned(rank: int, command: list[str]) -> list[str]:
        if backend == "nccl" or len(cores) < count:
            return command
        share = len(cores) // count
        return ["taskset", "-c", ",".join(map(str, cores[rank * share : (rank + 1) * share])), *command]

    _say(f"{count} {backend} ranks on this machine")
    environment = {**({"GLOO_SOCKET_IFNAME": "lo"} if backend == "gloo" else {}), **os.environ}
    if backend == "gloo":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        with interruptible():
            return calibrate_ranks(
                [environment] * count,
                name=name,
                backend=backend,
                level="node",
                max_bytes=num_bytes,
                source=_source(f"{count} {backend} ranks of one machine"),
                num_threads=max(1, len(cores) // count) if backend == "gloo" else None,
                timeout_s=timeout_s,
                wrap_command=pinned,
                show=_say,
            )
    except Interrupted as interruption:
        raise typer.Exit(interruption.exit_code) from None


def _calibrate_as_rank(name: str, backend: Literal["auto", "nccl", "gloo"], num_bytes: int, timeout_s: float) -> list[LinkModel]:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from gpualloc.rehearsal.calibration import Setting, calibrate

    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    world_size = int(os.environ["WORLD_SIZE"])
    ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    uses_cuda = backend == "nccl" or (backend == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", local_rank) if uses_cuda else torch.device("cpu")
    if uses_cuda:
        if local_rank >= torch.cuda.device_count():
            raise UsageError(f"rank {rank} wants GPU {local_rank} and this node has {torch.cuda.device_count()}; lower --nproc-per-node")
        torch.cuda.set_device(device)
    if world_size % ranks_per_node != 0:
        raise UsageError(f"{world_size} ranks do not fill nodes of {ranks_per_node}; start as many on every node")
    dist.init_process_group("nccl" if uses_cuda else "gloo", timeout=timedelta(seconds=timeout_s))
    # All nodes measure inside at the same time, then all local ranks between nodes.
    nodes = [list(range(first, first + ranks_per_node)) for first in range(0, world_size, ranks_per_node)]
    columns = [list(range(local, world_size, ranks_per_node)) for local in range(ranks_per_node)]
    show = _say if rank == 0 else lambda text: None
    links = []
    for level, groups in (("node", nodes), ("network", columns)):
        if len(groups[0]) < 2:
            continue
        group, _ = dist.new_subgroups_by_enumeration(groups)  # type: ignore[no-untyped-call]
        setting = Setting(
            name=f"{name}-{level}",
            device=device,
            level="node" if level == "node" else "network",
            max_bytes=num_bytes,
            source=_source(f"{world_size} {'NCCL' if uses_cuda else 'gloo'} ranks, {ranks_per_node} a node"),
            show=show,
        )
        show(f"{level}: {len(groups)} groups of {len(groups[0])}")
        links.append(calibrate(group, setting))
    dist.destroy_process_group()
    return links


def _keep(links: list[LinkModel], output: Path | None, *, as_json: bool) -> None:
    from gpualloc.cli.tables import output_console, print_json, text_table
    from gpualloc.rehearsal.link_model import calibrated_folder, write_link

    if output is not None and len(links) > 1:
        output.mkdir(parents=True, exist_ok=True)
    for link in links:
        file = calibrated_folder() / f"{link.name}.yaml"
        if output is not None:
            file = output / f"{link.name}.yaml" if len(links) > 1 else output
        try:
            write_link(link, file)
        except OSError as error:
            raise GpuallocError(f"cannot write {file}: {error.strerror}; name another file with --output") from error
        how = str(file) if output is not None else link.name
        _say(f"kept in {file}; use it: gpualloc rehearse --{'link' if link.level == 'node' else 'network'} {how} -- train.py")
    if as_json:
        print_json([link.model_dump(mode="json") for link in links])
        return
    console = output_console()
    for link in links:
        assert link.measured is not None
        console.print(f"{link.name}: {link.title}, busbw {link.busbw_gb_s:.3g} GB/s, {link.capacity_gb_s:.3g} GB/s for several at a time")
        operations = [name for name in link.measured.seconds if "/" not in name]
        table = text_table("bytes", *operations, right=("bytes", *operations))
        for index, (size, _) in enumerate(link.measured.seconds["all_reduce"]):
            cells = []
            for operation in operations:
                curve = link.measured.seconds[operation]
                cells.append(f"{curve[index][1] * 1e6:,.0f} us" if index < len(curve) else "-")
            table.add_row(f"{size:,.0f}", *cells)
        console.print(table)


def _source(what: str) -> str:
    import socket
    from datetime import datetime, timezone

    return f"gpualloc calibrate on {socket.gethostname()}, {what}, {datetime.now(timezone.utc):%Y-%m-%d}"


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
