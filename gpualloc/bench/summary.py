"""From the ranks' reports to the measurement of a case."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

from gpualloc.bench.interval import median_interval
from gpualloc.bench.rank_files import RankReport
from gpualloc.errors import CaseFailedError
from gpualloc.records import BenchCase, Environment, Measurement
from gpualloc.strategies import global_batch_size

_Number = TypeVar("_Number", int, float)


def summarise(case: BenchCase, reports: Sequence[RankReport], *, backend: str | None, environment: Environment | None) -> Measurement:
    """The measurement of a case all of whose ranks reported, in the order of the ranks.

    Raises:
        CaseFailedError: the replicas differ after training.
    """
    _check_replicas(reports)
    all_repeat_times_s = _slowest_rank_medians_s([report.step_times_s for report in reports])
    kept, disturbances, notes = _undisturbed(reports, len(all_repeat_times_s))
    repeat_times_s = tuple(all_repeat_times_s[index] for index in kept)
    step_time_s = statistics.median(repeat_times_s)
    compute_time_s: float | None = None
    if case.strategy == "single":
        compute_time_s = step_time_s
    elif all(reports[0].compute_times_s):
        compute_times_s = _slowest_rank_medians_s([report.compute_times_s for report in reports])
        compute_time_s = statistics.median(compute_times_s[index] for index in kept)
    ci_low_s, ci_high_s = median_interval(repeat_times_s) or (None, None)
    samples_per_s = global_batch_size(case) / step_time_s
    input_rates = _known(report.input_samples_per_s for report in reports)
    return Measurement(
        case=case,
        status="ok",
        backend=backend,
        repeat_step_times_s=repeat_times_s,
        step_time_s=step_time_s,
        step_time_low_s=min(repeat_times_s),
        step_time_high_s=max(repeat_times_s),
        step_time_ci_low_s=ci_low_s,
        step_time_ci_high_s=ci_high_s,
        compute_time_s=compute_time_s,
        exposed_comm_s=None if compute_time_s is None else max(0.0, step_time_s - compute_time_s),
        samples_per_s=samples_per_s,
        tokens_per_s=None if case.sequence_length is None else samples_per_s * case.sequence_length,
        peak_memory_bytes=max(report.peak_memory_bytes for report in reports),
        loss_start=statistics.fmean(_known(report.loss_start for report in reports)),
        loss_end=statistics.fmean(_known(report.loss_end for report in reports)),
        wire_bytes_per_step=max(_known(report.wire_bytes_per_step for report in reports), default=None),
        nonfinite_steps=max(_known(report.nonfinite_steps for report in reports), default=None),
        environment=_with_clocks(environment, reports[0]),
        disturbances=disturbances,
        notes=notes,
        # of a rehearsed node one rank of several read
        input_samples_per_s=sum(input_rates) if len(input_rates) == len(reports) and not case.is_rehearsed else None,
    )


def _undisturbed(reports: Sequence[RankReport], num_repeats: int) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """(repeats that count, why the figures are not to be trusted, notes): all of them where every single one was disturbed."""
    seen: list[list[str]] = [[] for _ in range(num_repeats)]
    for report in reports:
        for index, reasons in enumerate(report.disturbances):
            seen[index] += reasons
    notes = [note for report in reports for note in report.notes]
    kept = [index for index in range(num_repeats) if not seen[index]]
    first_reason = next((reason for reasons in seen for reason in reasons), None)
    if first_reason is None:
        return kept, (), tuple(dict.fromkeys(notes))
    if not kept:
        return list(range(num_repeats)), (f"all {num_repeats} repeats: {first_reason}",), tuple(dict.fromkeys(notes))
    notes.append(f"{num_repeats - len(kept)} of {num_repeats} repeats left out: {first_reason}")
    return kept, (), tuple(dict.fromkeys(notes))


def _slowest_rank_medians_s(step_times_s: Sequence[Sequence[Sequence[float]]]) -> tuple[float, ...]:
    """[ranks][repeats][steps] -> for each repeat the median step of its slowest rank.

    A rank's synchronised step holds its wait for the others. The same form serves with and without synchronisation: a
    maximum over the ranks of every single step would turn jitter into communication.
    """
    return tuple(max(map(statistics.median, ranks)) for ranks in zip(*step_times_s, strict=True))


def _known(values: Iterable[_Number | None]) -> list[_Number]:
    return [value for value in values if value is not None]


def _check_replicas(reports: Sequence[RankReport]) -> None:
    first_of: dict[int, int] = {}  # shard -> the first rank that holds it
    for rank, report in enumerate(reports):
        first = first_of.setdefault(report.shard, rank)
        if report.parameter_checksum != reports[first].parameter_checksum:
            raise CaseFailedError(
                f"the replicas differ after training: parameters of rank {rank} are not those of rank {first}; "
                "the gradient exchange gave the ranks different averages",
                rank=rank,
            )


def _with_clocks(environment: Environment | None, report: RankReport) -> Environment | None:
    if environment is None:
        return None
    return dataclasses.replace(environment, sm_clock_mhz=report.sm_clock_mhz, mem_clock_mhz=report.mem_clock_mhz)
