"""Joins measurements, rehearsals and forecasts into one answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpualloc.advice.answer import is_same_setting, straight_answer
from gpualloc.advice.choice import choose, is_close_call, rows_by_key
from gpualloc.advice.commands import bench_command
from gpualloc.advice.evidence import Evidence
from gpualloc.advice.job import Job
from gpualloc.advice.options import is_of, known_options, with_cost_efficiency, with_job
from gpualloc.advice.records import Advice, Option, RentOf
from gpualloc.advice.series import crossings, efficiency_points
from gpualloc.advice.steps import order_of_steps, start_row
from gpualloc.advice.turns import turning_points
from gpualloc.advice.words import gpus_text, how_text, interval_text, percent_text
from gpualloc.findings import DEFAULT_MIN_EFFICIENCY
from gpualloc.findings.labels import device_noun
from gpualloc.money import BuyOrRent
from gpualloc.records import BenchCase
from gpualloc.strategies import global_batch_size

if TYPE_CHECKING:
    from gpualloc.advice.forecasts import Forecaster

DEFAULT_COUNTS = (1, 2, 4, 8)
_MAX_NEXT = 5  # commands


def advise(
    evidence: Evidence,
    job: Job,
    *,
    counts: Sequence[int] | None = None,
    min_efficiency: float = DEFAULT_MIN_EFFICIENCY,
    rent: RentOf | None = None,
    why_no_price: str | None = None,
    device_memory_bytes: int | None = None,
    gpus_per_node: int = 8,
    forecaster: Forecaster | None = None,
    buy: Callable[[Sequence[Option]], BuyOrRent] | None = None,
) -> Advice:
    """The advice that the evidence carries.

    Args:
        evidence: rows of one workload on one kind of device.
        job: what is to be trained.
        counts: numbers of GPUs to consider beside those that were measured; None: 1, 2, 4, 8 of whole GPUs.
        rent: what a GPU-hour costs; None: unknown, as `why_no_price` says, and no cost is given.
        device_memory_bytes: of the GPU; None: not known.
        gpus_per_node: of a real machine.
        forecaster: for counts and sizes that were not run; None: none are given.
        buy: from the options to what buying would cost and save.

    Raises:
        InfeasibleError: a deadline or a budget that nothing meets.
    """
    known = known_options(evidence, job, device_memory_bytes=device_memory_bytes, gpus_per_node=gpus_per_node)
    case = evidence.rows[0].case
    is_real_gpu = case.device == "cuda" and case.ranks_per_gpu == 1  # ranks that share a device are not more of them
    asked = tuple(counts) if counts is not None else DEFAULT_COUNTS if is_real_gpu else ()
    options = list(known)
    if forecaster is not None:
        from gpualloc.advice.forecasts import forecast_options

        options += forecast_options(
            evidence,
            job,
            counts=asked,
            known=known,
            forecaster=forecaster,
            device_memory_bytes=device_memory_bytes,
            gpus_per_node=gpus_per_node,
        )
    rows_of_job = [row for row in evidence.at_size if is_of(job, row.case)]
    start = start_row(rows_of_job)
    reference = 1 if start is None else global_batch_size(start.case)
    price = None if rent is None else rent.amount_per_gpu_hour
    options = [with_job(option, job, reference_batch_size=reference, rent_per_gpu_hour=price) for option in options]
    rows = rows_by_key(evidence.rows)
    options = choose(with_cost_efficiency(options, rows), job, min_efficiency=min_efficiency, rows=rows)
    options.sort(key=lambda option: (option.num_gpus, option.case.precision, option.case.strategy, option.case.hook))
    chosen = next((option for option in options if option.is_chosen), None)
    points = efficiency_points(evidence)
    if forecaster is not None and chosen is not None:
        from gpualloc.advice.forecasts import forecast_points

        spread = chosen.case if chosen.num_gpus > 1 else replace(chosen.case, strategy="ddp", hook="none")
        points += forecast_points(evidence, spread, sorted({option.num_gpus for option in options} - {1}), forecaster)
    doubts, commands = _doubts(options, chosen, job, counts or (), evidence, min_efficiency)
    steps = () if chosen is None else order_of_steps(rows_of_job, chosen, is_strong=job.scaling == "strong")
    commands += [step.command for step in steps if step.command is not None]
    measure_next = tuple(dict.fromkeys(commands))[:_MAX_NEXT]
    start_option = None if start is None else next((option for option in options if option.case == start.case), None)
    return Advice(
        answer=straight_answer(
            options,
            steps,
            job=job,
            start=start_option,
            rent=rent,
            min_efficiency=min_efficiency,
            measure_next=measure_next,
            doubts=doubts,
        ),
        device_name=evidence.device_name,
        job=job,
        min_efficiency=min_efficiency,
        rent=rent,
        why_no_price=why_no_price,
        options=tuple(options),
        crossings=crossings(points, min_efficiency=min_efficiency),
        steps=steps,
        turns=() if chosen is None else turning_points(chosen, one_gpu_like(chosen, options), job, rent),
        purchase=None if buy is None else buy(options),
        measure_next=measure_next,
        is_certain=chosen is not None and not doubts,
        notes=evidence.notes,
    )


def one_gpu_like(chosen: Option, options: Sequence[Option]) -> Option | None:
    """The fastest option on one GPU in the chosen precision."""
    alone = [option for option in options if option.num_gpus == 1 and option.samples_per_s is not None]
    same = [option for option in alone if option.case.precision == chosen.case.precision]
    return max(same, key=lambda option: option.samples_per_s.value if option.samples_per_s else 0.0, default=None)


def _doubts(
    options: Sequence[Option], chosen: Option | None, job: Job, asked: Sequence[int], evidence: Evidence, min_efficiency: float
) -> tuple[list[str], list[str]]:
    """(why the answer is not certain, commands that would tell more): of the choice first, then of more GPUs than it has."""
    if chosen is None:
        case = evidence.at_size[0].case if evidence.at_size else evidence.rows[0].case
        if job.global_batch_size is not None:
            numbers = sorted({row.case.world_size for row in evidence.at_size} | set(asked) | {1})
            batches = sorted({job.global_batch_size // count for count in numbers if job.global_batch_size % count == 0}, reverse=True)
            command = _command(case, [count for count in numbers if count > 1] or [2], evidence)
            why = f"no case takes a global batch of {job.global_batch_size:,}"
            return [why], [re.sub(r"--batch-size \d+", f"--batch-size {','.join(map(str, batches))}", command)]
        return ["nothing that was asked for is numbers"], [_command(case, [count for count in asked if count > 1] or [2], evidence)]
    doubts, commands = [], []
    if chosen.source != "measured":
        doubts.append(f"the choice is {chosen.source}, not measured")
        commands.append(_command(chosen.case, [chosen.num_gpus], evidence))
    if job.deadline_s is not None or job.budget is not None:
        unsure = [option for option in options if option.why.startswith("may ")]
        doubts += [f"{gpus_text(option)} ({how_text(option.case)}) {option.why}" for option in unsure]
        return doubts[:3], commands
    if is_close_call(chosen, min_efficiency):
        efficiency = interval_text(chosen.cost_efficiency, percent_text)
        doubts.append(f"its efficiency, {efficiency}, is too close to {min_efficiency:.0%}")
        if chosen.source == "measured":
            commands.append(_command(chosen.case, [chosen.num_gpus], evidence, rounds=4))
    same = [option for option in options if option.num_gpus > 1 and is_same_setting(option.case, chosen.case)]
    known = {option.num_gpus for option in same if option.efficiency is not None}
    if not known:
        doubts.append(f"{how_text(chosen.case)} was measured on one {device_noun(chosen.case)} alone")
        elsewhere = {option.num_gpus for option in options if option.num_gpus > 1}
        commands.append(_command(chosen.case, sorted(elsewhere) or [2], evidence))
    for option in same:
        if option.num_gpus > chosen.num_gpus and is_close_call(option, min_efficiency):
            reach = interval_text(option.cost_efficiency, percent_text)
            doubts.append(f"{gpus_text(option)} could keep {min_efficiency:.0%}, too: {reach}")
            is_measured = option.source == "measured"
            commands.append(_command(option.case, [option.num_gpus], evidence, rounds=4 if is_measured else None))
    unknown = sorted(set(asked) - known - {1})
    if unknown:
        doubts.append(f"nothing is known of {', '.join(map(str, unknown))} {device_noun(chosen.case).rstrip('s')}s")
        commands.append(_command(chosen.case, unknown, evidence))
    elif known and chosen.num_gpus == max(known) and chosen.case.device == "cuda":
        commands.append(_command(chosen.case, [2 * chosen.num_gpus], evidence))
    return list(dict.fromkeys(doubts))[:3], commands


def _command(case: BenchCase, counts: Sequence[int], evidence: Evidence, *, rounds: int | None = None) -> str:
    """Real GPUs where the machine has as many, else a rehearsal."""
    num_devices = max((row.environment.num_devices for row in evidence.rows if row.environment is not None), default=1)
    if case.gpus_per_node is None and case.device == "cuda" and max(counts) > num_devices * case.ranks_per_gpu:
        case = replace(case, gpus_per_node=8, link="LINK", network="NETWORK" if max(counts) > 8 else None)
    elif case.is_rehearsed and max(counts) <= num_devices and case.device == "cuda":
        case = replace(case, gpus_per_node=None, link=None, network=None)
    return bench_command(case, gpus=counts, rounds=rounds)
