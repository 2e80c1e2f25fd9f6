"""Runs one case as a group of fresh processes; a case that dies leaves its cause as its measurement."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from gpualloc.bench import mps, rank_files
from gpualloc.bench.rank_server import RankServer
from gpualloc.bench.ranks import started_ranks, wait_for_reports
from gpualloc.bench.summary import summarise
from gpualloc.errors import CaseFailedError, GpuallocError
from gpualloc.records import BenchCase, Environment, Measurement
from gpualloc.strategies import ONE_PROCESS, num_processes


def run_case(
    case: BenchCase,
    *,
    timeout_s: float = 600.0,
    ci_target: float = rank_files.DEFAULT_CI_TARGET,
    environment: Environment | None = None,
    show_log: Callable[[str], None] | None = None,
    server: RankServer | None = None,
) -> Measurement:
    """Measures one case; a failure of the case comes back as a measurement of status "oom" or "failed" with the first cause.

    Raises:
        GpuallocError: the temporary folder cannot be written.
    """
    started_s = time.monotonic()
    with ExitStack() as cleanup:
        folder = _make_folder(cleanup)
        _write_order(folder, rank_files.CaseOrder(case=case, timeout_s=timeout_s, ci_target=ci_target))
        mps_places = cleanup.enter_context(mps.mps_daemon(folder)) if case.ranks_per_gpu > 1 else None
        backend = _describe_backend(case, has_slices=mps_places is not None)
        try:
            environments = [rank_environment(case, rank, mps_places) for rank in range(num_processes(case))]
            with started_ranks(folder, environments, server=server) as processes:
                reports = wait_for_reports(folder, processes, timeout_s=timeout_s)
            measurement = summarise(case, reports, backend=backend, environment=environment)
        except CaseFailedError as error:
            if show_log is not None and error.rank is not None:
                show_log(rank_files.output_file(folder, error.rank).read_text(errors="replace"))
            status = "oom" if error.kind == "oom" else "failed"
            measurement = Measurement(case=case, status=status, reason=str(error), backend=backend, environment=environment)
    return dataclasses.replace(measurement, wall_time_s=time.monotonic() - started_s)


def _make_folder(cleanup: ExitStack) -> Path:
    try:
        return Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gpualloc-bench-", ignore_cleanup_errors=True)))
    except OSError as error:
        raise GpuallocError(f"cannot make a temporary folder: {error}; set TMPDIR to a folder that can be written") from error


def _write_order(folder: Path, order: rank_files.CaseOrder) -> None:
    try:
        rank_files.write_order(folder, order)
    except OSError as error:
        raise GpuallocError(f"cannot write to the temporary folder {folder}: {error}; free space there or set TMPDIR") from error


def _describe_backend(case: BenchCase, *, has_slices: bool) -> str | None:
    """The backend, and how ranks share a GPU where they do, or which cluster is rehearsed."""
    if case.is_rehearsed:
        return f"rehearsed {'gloo' if case.device == 'cpu' else 'nccl'} ranks, {case.cluster()}"
    if case.strategy in ONE_PROCESS:
        return f"one of {case.ranks_per_gpu} MPS slices" if has_slices else None
    if case.device == "cpu":
        return "gloo"
    if case.ranks_per_gpu == 1:
        return "nccl"
    how = "MPS slices" if has_slices else "time-sliced, a single process has the whole GPU"
    return f"nccl over loopback TCP, {case.ranks_per_gpu} ranks a GPU ({how})"


def rank_environment(case: BenchCase, rank: int, mps_places: Mapping[str, str] | None) -> dict[str, str]:
    """What a rank's process is started with.

    Args:
        mps_places: of the daemon whose slices the ranks get; None: without one.
    """
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ}  # all ranks are here, whatever the host's name resolves to
    if case.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # torch's PowerSGD hook synchronises any GPU it sees, with the CPU's name
    if case.ranks_per_gpu > 1:
        environment.update(mps.sharing_environment(rank))
    if mps_places is not None:
        environment = mps.client_environment(environment, mps_places, ranks_per_gpu=case.ranks_per_gpu)
    return environment
