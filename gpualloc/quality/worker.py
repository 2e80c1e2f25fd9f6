"""One rank of one training, in a process of its own, as `gpualloc.bench.worker`."""

from __future__ import annotations

from pathlib import Path

from gpualloc.bench import rank_files, worker
from gpualloc.quality.messages import TrainingOrder, read_order


def main(folder: Path, rank: int) -> int:
    """Runs the rank and leaves its report or its failure in `folder`. Returns the exit code."""
    order = read_order(folder)
    return worker.run_guarded(folder, rank, lambda: _run(folder, rank, order))


def _run(folder: Path, rank: int, order: TrainingOrder) -> None:
    with worker.joined_ranks(folder, rank, order.case, timeout_s=order.timeout_s) as device:
        from gpualloc.quality.training import train_rank

        rank_files.write_report(folder, rank, train_rank(order, rank=rank, device=device))
