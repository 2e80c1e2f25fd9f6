"""Sia-like: an integer program over normalised goodputs (Jayaram Subramanya et al., SOSP 2023, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.assignment import solve_exactly
from gpualloc.plan.choices import Choices, choices_of, keep_fixed
from gpualloc.plan.placement import place
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan

_LEAST_FACTOR = 1e-3  # of the restart discount: below it a move is out of the question anyway


@dataclass(frozen=True, kw_only=True)
class Sia:
    """minimise sum_jc w_j x_jc G_jc^p + lambda sum_j w_j (1 - sum_c x_jc), p < 0, G the goodput over the job's lowest one.

    A choice other than the job's present one counts as r_j G_jc, with r_j = (age - restarts * cost) / (age + cost), at least 0
    (Qiao et al., Pollux, OSDI 2021, eq. 18).
    """

    name: str = "sia"
    power: float = -0.5  # p
    waiting_penalty: float = 1.1  # lambda, which must exceed 1: a job on its worst GPU is better than a waiting one
    relative_gap: float = 1e-4

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        values = keep_fixed(self.values(choices), choices)
        chosen = solve_exactly(values, choices.type_of, choices.num_gpus, choices.capacity, relative_gap=self.relative_gap)
        return place(choices, chosen, cluster, current)

    def values(self, choices: Choices) -> NDArray[np.float64]:
        """[J, C] what a choice gains over waiting."""
        goodput = choices.rates / choices.base_rates()[:, None]
        goodput = goodput * np.where(choices.is_held(), 1.0, restart_discount(choices)[:, None])
        with np.errstate(divide="ignore"):
            cost = np.where(choices.rates > 0, goodput**self.power, np.inf)
        return choices.attribute("weight")[:, None] * (self.waiting_penalty - cost)


def restart_discount(choices: Choices) -> NDArray[np.float64]:
    """[J] Pollux's r_j; 1 for jobs that hold nothing, which start anyway."""
    age, cost = choices.attribute("age_s"), choices.attribute("restart_cost_s")
    factor = (age - choices.attribute("num_restarts") * cost) / (age + np.maximum(cost, 1e-9))
    return np.where(choices.held >= 0, np.clip(factor, _LEAST_FACTOR, 1.0), 1.0)
