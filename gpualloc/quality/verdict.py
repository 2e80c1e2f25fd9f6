"""Is it as good, and how much faster? Every precision and hook against the reference, over seeds.

Trainings of one seed begin with the same weights and see the same batches, so each is compared with the reference's of its seed; the mean
of the differences has a 95 % interval by Student's t. To call two things the same it is not enough to see no difference: the whole
interval must lie within a margin that is small enough not to matter.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gpualloc.findings.ratio import Interval, paired_difference, speed_ratio
from gpualloc.quality.options import REFERENCE, default_target
from gpualloc.quality.records import CurvePoint, TrainingRun
from gpualloc.records import BenchCase

ACCURACY_MARGIN = 0.01  # one in a hundred images
LOSS_MARGIN = 0.01  # of the reference's loss


@dataclass(frozen=True, kw_only=True)
class GroupVerdict:
    """One precision and hook, all seeds of it."""

    case: BenchCase  # of the first seed
    metric: str  # "accuracy" or "loss", on held-out data after the last step
    num_seeds: int
    values: tuple[float, ...]  # of the seeds that neither diverged nor failed
    mean: float | None
    gain: Interval | None  # mean difference to the reference's seeds, so turned that below 0 is worse; None without common seeds
    margin: float  # a gain that stays within it, on either side, does not matter
    curve_within_noise: tuple[int, int] | None  # points of the held-out loss whose interval on the difference holds 0, of all
    target: float
    steps_to_target: tuple[int, ...]  # of the seeds that reached it, by the points of their curves
    step_time_s: float | None  # geometric mean over the seeds
    speedup: Interval | None  # over the reference
    wire_bytes_per_step: int | None
    problems: tuple[str, ...]  # of the seeds that diverged or failed
    # "reference", "unchanged within noise", "unchanged within the margin", "worse", "better", "not told apart", "no reference",
    # or "diverged in 1 of 3 seeds" and so on.
    verdict: str


def judge(runs: Sequence[TrainingRun], *, target: float | None = None) -> list[GroupVerdict]:
    """A verdict for each model, precision and hook, in the order run.

    Args:
        target: accuracy or loss to reach; None: the default of device and workload.
    """
    groups: dict[tuple[str, str, str], list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault((run.case.model, run.case.precision, run.case.hook), []).append(run)
    return [_judge(group, groups.get((model, *REFERENCE), []), target) for (model, _, _), group in groups.items()]


def _judge(group: Sequence[TrainingRun], reference: Sequence[TrainingRun], target: float | None) -> GroupVerdict:
    case, finished, compared = group[0].case, _finished(group), _finished(reference)
    values, reference_values = _final_values(finished), _final_values(compared)
    is_image = case.workload == "image"
    margin = ACCURACY_MARGIN if is_image else LOSS_MARGIN * (statistics.fmean(reference_values) if compared else 0.0)
    target = default_target(case.device, case.workload) if target is None else target
    gain = speedup = within_noise = None
    pairs = _pairs(finished, compared)
    if pairs and (case.precision, case.hook) != REFERENCE:
        ours, theirs = (_final_values(side) for side in zip(*pairs, strict=True))
        gain = paired_difference(ours, theirs) if is_image else paired_difference(theirs, ours)
        speedup = speed_ratio([_step_times_s(compared)], [_step_times_s(finished)])
        within_noise = _curve_within_noise(pairs)
    return GroupVerdict(
        case=case,
        metric="accuracy" if is_image else "loss",
        num_seeds=len(group),
        values=values,
        mean=statistics.fmean(values) if values else None,
        gain=gain,
        margin=margin,
        curve_within_noise=within_noise,
        target=target,
        steps_to_target=tuple(filter(None, (_step_of_target(run, target) for run in finished))),
        step_time_s=statistics.geometric_mean(_step_times_s(finished)) if finished else None,
        speedup=speedup,
        wire_bytes_per_step=finished[0].wire_bytes_per_step if finished else None,
        problems=tuple(f"seed {run.case.seed} {run.status}: {run.reason}" for run in group if run.status != "ok"),
        verdict=_verdict(group, gain, margin),
    )


def _verdict(group: Sequence[TrainingRun], gain: Interval | None, margin: float) -> str:
    for status in ("diverged", "failed", "oom", "skipped"):
        count = sum(run.status == status for run in group)
        if count:
            return f"{status} in {count} of {len(group)} seeds"
    if (group[0].case.precision, group[0].case.hook) == REFERENCE:
        return "reference"
    if gain is None:
        return "no reference"
    if gain.low is not None and gain.high is not None and -margin <= gain.low and gain.high <= margin:
        return "unchanged within noise" if gain.low <= 0 <= gain.high else "unchanged within the margin"
    return "worse" if gain.is_below(0) else "better" if gain.is_above(0) else "not told apart"


def _finished(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    return [run for run in runs if run.status == "ok"]


def _final_values(runs: Sequence[TrainingRun]) -> tuple[float, ...]:
    """Of finished runs."""
    return tuple(value for run in runs if (value := _metric(run, run.curve[-1])) is not None)


def _metric(run: TrainingRun, point: CurvePoint) -> float | None:
    return point.test_accuracy if run.case.workload == "image" else point.test_loss


def _step_of_target(run: TrainingRun, target: float) -> int | None:
    is_image = run.case.workload == "image"
    for point in run.curve:
        value = _metric(run, point)
        if value is not None and (value >= target if is_image else value <= target):
            return point.step
    return None


def _step_times_s(runs: Sequence[TrainingRun]) -> list[float]:
    return [run.step_time_s for run in runs if run.step_time_s]


def _pairs(runs: Sequence[TrainingRun], reference: Sequence[TrainingRun]) -> list[tuple[TrainingRun, TrainingRun]]:
    """(run, the reference's of the same seed)."""
    of_seed = {run.case.seed: run for run in reference}
    return [(run, of_seed[run.case.seed]) for run in runs if run.case.seed in of_seed]


def _curve_within_noise(pairs: Sequence[tuple[TrainingRun, TrainingRun]]) -> tuple[int, int]:
    num_within, num_points = 0, len(pairs[0][0].curve)
    for index in range(num_points):
        ours, theirs = ([run.curve[index].test_loss or 0.0 for run in side] for side in zip(*pairs, strict=True))
        difference = paired_difference(ours, theirs)
        num_within += not (difference.is_above(0) or difference.is_below(0))
    return num_within, num_points
