"""Calibrates the link between ranks that are started here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from gpualloc.bench.ranks import started_ranks, wait_for_ranks
from gpualloc.bench.told_progress import told_progress
from gpualloc.rehearsal import calibration_worker
from gpualloc.rehearsal.calibration_worker import CalibrationOrder
from gpualloc.rehearsal.link_model import LinkModel


def calibrate_ranks(
    environments: Sequence[Mapping[str, str]],
    *,
    name: str,
    backend: Literal["gloo", "nccl"],
    level: Literal["node", "network"],
    max_bytes: int,
    source: str,
    ranks_per_gpu: int = 1,
    num_threads: int | None = None,
    timeout_s: float = 1800.0,
    wrap_command: Callable[[int, list[str]], list[str]] = lambda rank, command: command,
    show: Callable[[str], None] = lambda text: None,
) -> LinkModel:
    """The link between one process per environment, measured by them.

    Args:
        level: what the link is in a cluster; all ranks are on it.
        source: for the model's file: where and when.
        wrap_command: as in gpualloc.bench.ranks.started_ranks.
        show: hears of what is measured.

    Raises:
        CaseFailedError: a rank failed, or not all had finished in time.
    """
    with tempfile.TemporaryDirectory(prefix="gpualloc-calibrate-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        order = CalibrationOrder(
            name=name,
            backend=backend,
            world_size=len(environments),
            ranks_per_gpu=ranks_per_gpu,
            level=level,
            max_bytes=max_bytes,
            num_threads=num_threads,
            source=source,
            timeout_s=timeout_s,
        )
        calibration_worker.write_order(folder, order)
        worker = "gpualloc.rehearsal.calibration_worker"
        with (
            started_ranks(folder, environments, worker=worker, wrap_command=wrap_command) as processes,
            told_progress(calibration_worker.progress_file(folder), show),
        ):
            wait_for_ranks(folder, processes, timeout_s=timeout_s)
        return LinkModel.model_validate_json(calibration_worker.read_link(folder))
