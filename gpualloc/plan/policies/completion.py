"""gpualloc's own policy: short completion times for jobs that scale, on GPUs that differ.

Each type's GPUs have a price, in completion time of jobs per GPU and second. A job that runs for long is best off where a unit of its
work costs least, time and GPUs together: m_j = min_c (w_j + f_j price_c gpus_c) / speed_jc. A choice is worth speed_jc m_j now, less
what its GPUs cost now, and prices are such that no more is asked for than there is. The factor f_j is what sets short jobs before long
ones: the mean price over the job's remaining time over the present price. As jobs end, prices fall; a job with long to go will find
GPUs cheap later on, so that it gives way now, as in SRPT and, for jobs that scale as a power of their GPUs, in heSRPT (Berg et al.,
SIGMETRICS 2020).

A start or a move has to pay within the time that its allocation lasts. Where many short jobs are present, the next change is near; where
few long ones are, it is far: the time is taken to be the harmonic mean of the remaining times, one over the rate at which a job ends. In
steady state as many come as end. However far, what a job holds counts for a ninth more than it is worth elsewhere: prices of a nearby
solution may differ by more than a restart costs a job of days, and jobs moved every round for such gains would never end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.assignment import clear_market
from gpualloc.plan.choices import Choices, choices_of, keep_fixed
from gpualloc.plan.placement import place
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan

FloatArray = NDArray[np.float64]
_LEAST_LEFT = 0.05  # of what is done: what a job that says it is nearly finished counts as having left; it may have erred
_KEPT = 0.5, 0.9  # limits of the share of the time that an allocation lasts that its restart leaves
_LEVEL = 3.0  # Jobs that declare nothing count alike within such a factor of work done: else equal ones overtake one another for ever
_LEAST_TIME_S = 1.0  # that a job has left
_CALM_S = 3600.0  # without an arrival
_NEVER = 1e30  # seconds for a unit of work where the job does not run: large, and still finite in products


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Work left is what jobs declare; those that declare nothing count as half done, with an hour on their slowest GPU to go at least."""

    name: str = "gpualloc"
    price_power: float = 2.0  # of f_j; above 1: more weight to short jobs than present jobs alone would give, as more arrive
    unknown_work_s: float = 3600.0  # on the slowest GPU

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        is_able = choices.rates.any(axis=1) | choices.is_fixed
        if not is_able.all():  # who fits nowhere ends never: it tells nothing of the next change
            able = [job for job, can_run in zip(choices.jobs, is_able.tolist(), strict=True) if can_run]
            choices = choices_of(able, cluster, current)
        if self._is_settled(choices):
            return {job.job_id: current[job.job_id] for job, held in zip(choices.jobs, choices.held, strict=True) if held >= 0}
        return place(choices, self.choose(choices), cluster, current)

    def choose(self, choices: Choices) -> NDArray[np.int64]:
        """[J] the choice of each job, -1: none."""
        if not choices.rates.size:
            return np.full(len(choices.jobs), -1, dtype=np.int64)
        rows = np.arange(len(choices.jobs))
        weight = choices.attribute("weight")[:, None]
        work_s = self._work_left_s(choices)
        start = np.full(len(choices.capacity), float(weight.sum() / choices.capacity.sum()))
        running = _time_per_work(choices)
        start_s = np.where(choices.is_held(), 0.0, choices.attribute("restart_cost_s")[:, None])
        per_work = running + start_s / work_s[:, None]

        def rent_at(prices: FloatArray) -> FloatArray:
            return (prices[choices.type_of] * choices.num_gpus)[None, :]

        cheapest = ((weight + rent_at(start)) * per_work).argmin(axis=1)
        lasts_s = _time_between_changes(work_s * running[rows, np.where(choices.held >= 0, choices.held, cheapest)])
        kept = np.clip(1 - choices.attribute("restart_cost_s") / lasts_s, *_KEPT)[:, None]
        done_before_next = np.minimum(work_s[:, None], kept * lasts_s / running)
        # Leaving what it holds costs a job a restart, now or later.
        worth = np.where(choices.is_held(), 1 / kept, 1.0) / (running + start_s / done_before_next)

        def values_at(prices: FloatArray) -> FloatArray:
            rent = rent_at(prices)
            cheapest = ((weight + rent) * per_work).argmin(axis=1)
            factor = self._price_factors(work_s * per_work[rows, cheapest])
            unit_cost = ((weight + factor[:, None] * rent) * per_work).min(axis=1)
            return keep_fixed(np.where(choices.rates > 0, worth * unit_cost[:, None], 0.0), choices)

        return clear_market(values_at, choices.type_of, choices.num_gpus, choices.capacity, start)

    def _work_left_s(self, choices: Choices) -> FloatArray:
        """[J] seconds on the slowest GPU that runs the job."""
        base = choices.base_rates()
        left, done = choices.attribute("progress_left"), choices.attribute("progress_done")
        guessed = self.unknown_work_s * base
        guessed = guessed * _middle_of_level(done / guessed)
        is_told = np.isfinite(left) & (left > 0)  # none left, and still here: its word is worth nothing
        return np.maximum(np.where(is_told, left, guessed), np.maximum(_LEAST_LEFT * done, 1e-9 * base)) / base

    def _price_factors(self, time_left_s: FloatArray) -> FloatArray:
        """[J] f_j: the mean number of present jobs still there over a job's remaining time, over their number now, to `price_power`."""
        order = time_left_s.argsort(kind="stable")
        ends = time_left_s[order]
        count = len(ends)
        present = (ends.cumsum() + ends * np.arange(count - 1, -1, -1)) / (count * ends)  # sum of min(end_i, end_j) over count * end_j
        factors = np.empty(count)
        factors[order] = present**self.price_power
        return factors

    @staticmethod
    def _is_settled(choices: Choices) -> bool:
        """Whether every GPU is held and no job waits for its first start: nothing came or went since the last plan.

        What drifted meanwhile is not worth restarts while jobs keep arriving; with none for an hour the plan is looked at every time.
        """
        if float(choices.attribute("age_s").min(initial=np.inf)) >= _CALM_S:
            return False
        held = choices.held[choices.held >= 0]
        used = np.bincount(choices.type_of[held], weights=choices.num_gpus[held], minlength=len(choices.capacity))
        is_new = (choices.held < 0) & (choices.attribute("progress_done") <= 0)
        return bool((used == choices.capacity).all() and not is_new.any())


def _time_per_work(choices: Choices) -> FloatArray:
    """[J, C] seconds for a second's work on the slowest GPU, once it runs."""
    base = choices.base_rates()[:, None]
    result: FloatArray = np.divide(base, choices.rates, out=np.full(choices.rates.shape, _NEVER), where=choices.rates > 0)
    return result


def _middle_of_level(share: FloatArray) -> FloatArray:
    """`share` by steps: the geometric mean of the powers of _LEVEL that it lies between; 1 below the first."""
    level = np.floor(np.log(np.maximum(share, 1.0)) / np.log(_LEVEL))
    result: FloatArray = np.where(level > 0, _LEVEL ** (level + 0.5), 1.0)
    return result


def _time_between_changes(time_left_s: FloatArray) -> float:
    """The harmonic mean of the jobs' remaining times."""
    return len(time_left_s) / float((1 / np.maximum(time_left_s, _LEAST_TIME_S)).sum())
