"""Profiles a built-in workload: a group of fresh processes, each of which records itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from gpualloc.bench import mps, rank_files
from gpualloc.bench.ranks import started_ranks, wait_for_ranks
from gpualloc.bench.runner import rank_environment
from gpualloc.bench.told_progress import told_progress
from gpualloc.errors import CaseFailedError
from gpualloc.profiling.messages import ProfileOrder, progress_file, write_order
from gpualloc.profiling.records import RankProfile, rank_from_json
from gpualloc.records import BenchCase
from gpualloc.strategies import num_processes


def profile_case(
    case: BenchCase,
    *,
    trace_folder: Path,
    timeout_s: float,
    say: Callable[[str], None] = lambda text: None,
    show_log: Callable[[str], None] | None = None,
) -> list[RankProfile]:
    """The profiles of all ranks, in order.

    Args:
        trace_folder: there already; gets a trace per rank.
        timeout_s: of the whole case.
        say: hears of each stage.
        show_log: given what the first failing rank printed.

    Raises:
        CaseFailedError: a rank died, or the ranks did not finish in time.
    """
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gpualloc-profile-", ignore_cleanup_errors=True)))
        write_order(folder, ProfileOrder(case=case, trace_folder=str(trace_folder), timeout_s=timeout_s))
        mps_places = cleanup.enter_context(mps.mps_daemon(folder)) if case.ranks_per_gpu > 1 else None
        environments = [rank_environment(case, rank, mps_places) for rank in range(num_processes(case))]
        try:
            with (
                started_ranks(folder, environments, worker="gpualloc.profiling.worker") as processes,
                told_progress(progress_file(folder), say),
            ):
                wait_for_ranks(folder, processes, timeout_s=timeout_s)
        except CaseFailedError as error:
            if show_log is not None and error.rank is not None:
                show_log(rank_files.output_file(folder, error.rank).read_text(errors="replace"))
            raise
        return [rank_from_json(json.loads(rank_files.report_file(folder, rank).read_text())) for rank in range(len(environments))]
