"""Which option is chosen, and why each other one was not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from gpualloc.advice.evidence import work_key
from gpualloc.advice.job import Job
from gpualloc.advice.records import Option
from gpualloc.errors import InfeasibleError
from gpualloc.findings.ratio import speed_ratio
from gpualloc.records import BenchCase, Measurement

_PRECISIONS = ("fp32", "fp64", "tf32", "bf16", "fp16", "pure_bf16", "pure_fp16", "fp8")  # the plainest first


def plainness(case: BenchCase) -> tuple[object, ...]:
    """Small for what a plain training script does."""
    return (
        len(case.details()),
        _PRECISIONS.index(case.precision) if case.precision in _PRECISIONS else len(_PRECISIONS),
        (case.strategy, case.hook) not in (("single", "none"), ("ddp", "none")),
        case.per_device_batch_size,
    )


def choose(options: Sequence[Option], job: Job, *, min_efficiency: float, rows: Mapping[tuple[object, ...], Measurement]) -> list[Option]:
    """The options with one of them chosen, and a reason with each; with a note alone where it has no figures.

    With a deadline the cheapest that meets it; with a budget alone the fastest within it; else the fastest of those whose cost efficiency
    keeps the bar certainly, or likely where none does; a single GPU where none is likely to. Of options on as many GPUs that the
    measurements do not tell apart, the plainest.

    Args:
        rows: work_key -> the measurement behind an option.

    Raises:
        InfeasibleError: a deadline or a budget that no option meets.
    """
    known = [option for option in options if option.samples_per_s is not None and option.memory.fits is not False]
    is_bound = job.deadline_s is not None or job.budget is not None
    fitting = [option for option in known if _why_not(option, job, min_efficiency, is_bound) is None]
    if not fitting:
        if is_bound and known:
            raise InfeasibleError(_nearest(known, job))
        return [dataclasses.replace(option, why=option.note or _why_not(option, job, min_efficiency, is_bound) or "") for option in options]
    if not is_bound:  # what is sure before what is likely; a single GPU keeps every bar and says nothing of more
        sure = [option for option in fitting if not is_close_call(option, min_efficiency)]
        fitting = sure if any(option.num_gpus > 1 for option in sure) else fitting
    best = min(fitting, key=_expense) if job.deadline_s is not None else max(fitting, key=_speed)
    alike = [option for option in fitting if option is best or (option.num_gpus == best.num_gpus and _is_tie(best, option, rows))]
    chosen = min(alike, key=lambda option: plainness(option.case))
    return [
        dataclasses.replace(option, is_chosen=True, why=_why(option, known, job, min_efficiency))
        if option is chosen
        else dataclasses.replace(option, why=_why_considered(option, chosen, job, min_efficiency, is_bound, is_alike=option in alike))
        for option in options
    ]


def is_close_call(option: Option, min_efficiency: float) -> bool:
    """Whether the interval of its cost efficiency holds the bar, or is not known."""
    efficiency = option.cost_efficiency
    if efficiency is None or option.num_gpus == 1:
        return False
    return efficiency.low is None or efficiency.high is None or efficiency.low < min_efficiency <= efficiency.high


def _speed(option: Option) -> float:
    assert option.samples_per_s is not None
    return option.samples_per_s.value


def _expense(option: Option) -> float:
    """By cost, which is in proportion to the GPU-hours."""
    return option.num_gpus / _speed(option)


def _is_tie(best: Option, other: Option, rows: Mapping[tuple[object, ...], Measurement]) -> bool:
    a, b = rows.get(work_key(best.case)), rows.get(work_key(other.case))
    if a is None or b is None or a.case.is_rehearsed != b.case.is_rehearsed:
        return False
    work = best.global_batch_size / other.global_batch_size
    ratio = speed_ratio([b.repeat_step_times_s], [a.repeat_step_times_s], factor=work)
    return ratio.low is not None and not ratio.is_above(1)


def _why_not(option: Option, job: Job, min_efficiency: float, is_bound: bool) -> str | None:
    """The constraint that the option fails, or None."""
    if option.note is not None and option.samples_per_s is None:
        return option.note
    if option.memory.fits is False:
        return "does not fit into memory"
    if job.deadline_s is not None and option.time_s is not None and (option.time_s.high or option.time_s.value) > job.deadline_s:
        return "misses the deadline" if option.time_s.value > job.deadline_s else "may miss the deadline"
    if job.budget is not None:
        if option.cost is None:
            return "its cost is not known"
        if (option.cost.high or option.cost.value) > job.budget:
            return "over the budget" if option.cost.value > job.budget else "may be over the budget"
    if is_bound or option.num_gpus == 1:
        return None
    if option.cost_efficiency is None:
        return "no single GPU to compare with"
    if option.cost_efficiency.value < min_efficiency:
        close = " (too close to call)" if is_close_call(option, min_efficiency) else ""
        is_slow_setting = option.efficiency is not None and option.efficiency.value >= min_efficiency
        return (
            f"{option.cost_efficiency.value:.0%} of the fastest setting"
            if is_slow_setting
            else f"below {min_efficiency:.0%} efficiency{close}"
        )
    return None


def _why(option: Option, known: Sequence[Option], job: Job, min_efficiency: float) -> str:
    if job.deadline_s is not None:
        return "the cheapest that meets the deadline" + ("" if job.budget is None else " within the budget")
    if job.budget is not None:
        return "the fastest within the budget"
    if option.num_gpus == 1:
        has_more = any(other.num_gpus > 1 for other in known)
        return f"the fastest on one; {f'no more keep {min_efficiency:.0%} efficiency' if has_more else 'more are not known'}"
    sure = " (too close to call)" if is_close_call(option, min_efficiency) else ""
    return f"the fastest that keeps {min_efficiency:.0%} efficiency{sure}"


def _why_considered(option: Option, chosen: Option, job: Job, min_efficiency: float, is_bound: bool, *, is_alike: bool) -> str:
    failing = _why_not(option, job, min_efficiency, is_bound)
    if failing is not None:
        return failing
    if not is_bound and option.num_gpus > chosen.num_gpus and is_close_call(option, min_efficiency):
        return "too close to call"
    if is_alike:
        return "as fast, and less plain"
    if job.deadline_s is not None:
        return f"{_expense(option) / _expense(chosen) - 1:.0%} dearer"
    slower = 1 - _speed(option) / _speed(chosen)
    return (
        f"{slower:.0%} slower"
        if slower >= 0.005
        else "as fast, and less plain"
        if slower >= -0.005
        else f"{-slower:.0%} faster, less plain"
    )


def _nearest(options: Sequence[Option], job: Job) -> str:
    """What comes closest, of those that fit into memory."""
    parts = []
    quickest = max(options, key=_speed)
    if job.deadline_s is not None and quickest.time_s is not None:
        parts.append(
            f"the deadline is {job.deadline_s / 3600:.2f} h and the fastest option, {quickest.num_gpus} x {quickest.case.strategy} in "
            f"{quickest.case.precision}, takes {(quickest.time_s.high or quickest.time_s.value) / 3600:.2f} h"
        )
    if job.budget is not None:
        costs = [option for option in options if option.cost is not None]
        if not costs:
            parts.append("the budget cannot be kept without a price: name one with --price, such as '2.50 EUR', or in a price book")
        else:
            cheapest = min(costs, key=_expense)
            assert cheapest.cost is not None
            parts.append(
                f"the budget is {job.budget:,.2f} and the cheapest option, {cheapest.num_gpus} x {cheapest.case.strategy} in "
                f"{cheapest.case.precision}, costs {(cheapest.cost.high or cheapest.cost.value):,.2f}"
            )
    return f"no option meets what was asked: {'; '.join(parts)}; allow more, or measure more GPUs"


def rows_by_key(rows: Sequence[Measurement]) -> dict[tuple[object, ...], Measurement]:
    """What `choose` looks measurements up in."""
    return {work_key(row.case): row for row in rows}
