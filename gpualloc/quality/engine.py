"""Runs the trainings, one group of fresh processes after the other; one that dies leaves the others as they are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from gpualloc.bench import mps, rank_files
from gpualloc.bench.rank_server import RankServer
from gpualloc.bench.ranks import started_ranks, wait_for_ranks
from gpualloc.bench.runner import rank_environment
from gpualloc.errors import CaseFailedError
from gpualloc.quality.messages import TrainingOrder, TrainingReport, read_report, step_time_s, write_order
from gpualloc.quality.options import PlannedRun
from gpualloc.quality.records import CurvePoint, TrainingRun
from gpualloc.records import BenchCase

NUM_POINTS = {"cpu": 5, "cuda": 20}  # of a curve: a test takes a CPU as long as several steps

# Called after a training, with its number from 0 on and what came out.
Progress = Callable[[int, TrainingRun], None]


def run_trainings(
    planned: Sequence[PlannedRun],
    *,
    timeout_s: float,
    finished: Sequence[TrainingRun] = (),
    progress: Progress = lambda number, run: None,
    show_log: Callable[[str], None] | None = None,
) -> list[TrainingRun]:
    """Runs what is planned, in order.

    Args:
        timeout_s: of one training.
        finished: trainings that need not be made again.
        progress: hears of every training, the finished ones too.
        show_log: given what the first failing rank of a training printed.
    """
    known = {(run.case.key(), run.learning_rate): run for run in finished}
    runs = []
    with RankServer() as server:
        for number, plan in enumerate(planned):
            run = known.get((plan.cell.case.key(), plan.learning_rate))
            if run is None:
                run = _run_planned(plan, timeout_s, show_log, server)
            progress(number, run)
            runs.append(run)
    return runs


def _run_planned(plan: PlannedRun, timeout_s: float, show_log: Callable[[str], None] | None, server: RankServer) -> TrainingRun:
    case, learning_rate = plan.cell.case, plan.learning_rate
    if plan.cell.skip_reason is not None:
        return TrainingRun(case=case, learning_rate=learning_rate, status="skipped", reason=plan.cell.skip_reason)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gpualloc-quality-", ignore_cleanup_errors=True)))
        order = TrainingOrder(case=case, learning_rate=learning_rate, num_points=NUM_POINTS[case.device], timeout_s=timeout_s)
        write_order(folder, order)
        mps_places = cleanup.enter_context(mps.mps_daemon(folder)) if case.ranks_per_gpu > 1 else None
        environments = [rank_environment(case, rank, mps_places) for rank in range(case.world_size)]
        try:
            with started_ranks(folder, environments, worker="gpualloc.quality.worker", server=server) as processes:
                wait_for_ranks(folder, processes, timeout_s=timeout_s)
        except CaseFailedError as error:
            if show_log is not None and error.rank is not None:
                show_log(rank_files.output_file(folder, error.rank).read_text(errors="replace"))
            status = "oom" if error.kind == "oom" else "failed"
            return TrainingRun(case=case, learning_rate=learning_rate, status=status, reason=str(error))
        return summarise(case, learning_rate, [read_report(folder, rank) for rank in range(case.world_size)])


def summarise(case: BenchCase, learning_rate: float, reports: Sequence[TrainingReport]) -> TrainingRun:
    """The run of a training all of whose ranks reported, in the order of the ranks."""
    first = reports[0]  # after the exchange of buffers all ranks test the same model
    curve = []
    for index, step in enumerate(first.steps):
        train_loss = sum(report.train_losses[index] for report in reports) / len(reports)
        accuracy = None if first.test_accuracies is None else first.test_accuracies[index]
        curve.append(
            CurvePoint(step=step, train_loss=_finite(train_loss), test_loss=_finite(first.test_losses[index]), test_accuracy=accuracy)
        )
    reason = _why_diverged(curve)
    nonfinite_steps = [report.nonfinite_steps for report in reports if report.nonfinite_steps is not None]
    return TrainingRun(
        case=case,
        learning_rate=learning_rate,
        status="ok" if reason is None else "diverged",
        reason=reason,
        curve=tuple(curve),
        step_time_s=max(map(step_time_s, reports)),
        train_time_s=max(sum(report.stretch_times_s) for report in reports),
        wire_bytes_per_step=reports[0].wire_bytes_per_step,  # alike on all ranks
        nonfinite_steps=max(nonfinite_steps, default=None),
    )


def _why_diverged(curve: Sequence[CurvePoint]) -> str | None:
    for point in curve:
        if point.train_loss is None or point.test_loss is None:
            return f"inf or NaN in the loss by step {point.step} of {curve[-1].step}"
    first, last = curve[0].train_loss, curve[-1].train_loss
    if first is not None and last is not None and last > first:
        return f"the training loss rose from {first:.3f} to {last:.3f}"
    return None


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
