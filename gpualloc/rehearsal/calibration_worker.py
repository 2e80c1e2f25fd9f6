"""One rank of `gpualloc calibrate`: joins the others, measures, and leaves what it found in the folder (rank 0) or nothing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from gpualloc.bench import rank_files, worker


@dataclass(frozen=True, kw_only=True)
class CalibrationOrder:
    """What every rank is told."""

    name: str
    backend: Literal["gloo", "nccl"]
    world_size: int
    ranks_per_gpu: int
    level: Literal["node", "network"]
    max_bytes: int
    num_threads: int | None  # to compute with; None: as the machine has it
    source: str
    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    link: str | None  # JSON of a LinkModel; rank 0's


def write_order(folder: Path, order: CalibrationOrder) -> None:
    (folder / "order.json").write_text(json.dumps(asdict(order)))


def read_link(folder: Path) -> str:
    """JSON of the link model that rank 0 left."""
    link: str = json.loads(rank_files.report_file(folder, 0).read_text())["link"]
    return link


def progress_file(folder: Path) -> Path:
    """Rank 0's lines of progress."""
    return folder / "progress.txt"


def main(folder: Path, rank: int) -> int:
    """Runs the rank and leaves its report or its failure in `folder`. Returns the exit code."""
    order = CalibrationOrder(**json.loads((folder / "order.json").read_text()))
    return worker.run_guarded(folder, rank, lambda: _run(folder, rank, order))


def _run(folder: Path, rank: int, order: CalibrationOrder) -> None:
    import torch
    import torch.distributed as dist

    from gpualloc.rehearsal.calibration import Setting, calibrate

    if order.num_threads is not None:
        torch.set_num_threads(order.num_threads)
    device = torch.device("cpu")
    if order.backend == "nccl":
        device = torch.device("cuda", rank // order.ranks_per_gpu)
        torch.cuda.set_device(device)
    dist.init_process_group(
        order.backend,
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=order.world_size,
        timeout=timedelta(seconds=order.timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    group = dist.group.WORLD
    assert group is not None
    with progress_file(folder).open("a") if rank == 0 else open(os.devnull, "w") as progress:

        def show(text: str) -> None:
            print(text, file=progress, flush=True)

        setting = Setting(name=order.name, device=device, level=order.level, max_bytes=order.max_bytes, source=order.source, show=show)
        link = calibrate(group, setting)
    rank_files.write_report(folder, rank, CalibrationReport(link=link.model_dump_json() if rank == 0 else None))
    dist.destroy_process_group()
