"""Which price, load or value would turn the answer. Time and cost are linear in each, so every one is solved exactly."""

from __future__ import annotations

from gpualloc.advice.job import Job
from gpualloc.advice.records import Option, RentOf, Turn
from gpualloc.advice.words import gpus_text, hours_text, money_text


def turning_points(chosen: Option, reference: Option | None, job: Job, rent: RentOf | None) -> tuple[Turn, ...]:
    """What would turn the choice.

    Args:
        reference: one GPU in the same setting; None: not known.
    """
    turns = []
    if rent is not None and reference is not None and chosen.num_gpus > 1 and chosen.cost is not None and reference.cost is not None:
        assert chosen.time_s is not None
        assert reference.time_s is not None
        more = chosen.cost.value - reference.cost.value
        sooner_h = (reference.time_s.value - chosen.time_s.value) / 3600
        if sooner_h > 0:
            value = more / sooner_h
            what = f"{gpus_text(chosen)} cost {money_text(abs(more))} {rent.currency} {'more' if more > 0 else 'less'} than one"
            sooner = f"and finish {hours_text(sooner_h * 3600)} earlier"
            worth = (
                f"worth it where an hour earlier is worth more than {money_text(value)} {rent.currency}"
                if more > 0
                else "worth it whatever an hour is worth"
            )
            turns.append(
                Turn(what="value of an hour", text=f"{what} {sooner}: {worth}", turns_at=max(0.0, value), unit=f"{rent.currency}/h")
            )
    if job.budget is not None and chosen.gpu_hours is not None and rent is not None:
        price = job.budget / chosen.gpu_hours.value
        text = f"the budget holds up to {money_text(price)} {rent.currency} per GPU-hour (now {money_text(rent.amount_per_gpu_hour)})"
        turns.append(Turn(what="price", text=text, turns_at=price, unit=f"{rent.currency}/GPU-hour"))
        share = price / rent.amount_per_gpu_hour
        turns.append(
            Turn(what="load in the budget", text=f"the budget holds up to {share:.2f} times this job", turns_at=share, unit="jobs")
        )
    if job.deadline_s is not None and chosen.time_s is not None:
        share = job.deadline_s / chosen.time_s.value
        turns.append(Turn(what="load in time", text=f"the deadline holds up to {share:.2f} times this job", turns_at=share, unit="jobs"))
    return tuple(turns)
