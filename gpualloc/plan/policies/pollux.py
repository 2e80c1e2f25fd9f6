"""Pollux-like: goodput of elastic jobs, blind to what a GPU's type means for a job (Qiao et al., OSDI 2021, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.assignment import solve_by_prices
from gpualloc.plan.choices import Choices, choices_of, keep_fixed
from gpualloc.plan.placement import place
from gpualloc.plan.policies.sia import restart_discount
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan


@dataclass(frozen=True, kw_only=True)
class Pollux:
    """maximise (1 / J sum_j w_j (r_j SPEEDUP_j)^p)^(1 / p), p = -1, by prices instead of its genetic search.

    SPEEDUP is the goodput over that on one GPU, averaged over the types on which a count runs: Pollux knows no types.
    """

    name: str = "pollux"
    power: float = -1.0
    waiting_penalty: float = 2.0  # a waiting job's (SPEEDUP)^p; above 1, which is a single GPU's

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        speedup = _blind_speedups(choices) * np.where(choices.is_held(), 1.0, restart_discount(choices)[:, None])
        with np.errstate(divide="ignore"):
            cost = np.where(speedup > 0, speedup**self.power, np.inf)
        values = keep_fixed(choices.attribute("weight")[:, None] * (self.waiting_penalty - cost), choices)
        return place(choices, solve_by_prices(values, choices.type_of, choices.num_gpus, choices.capacity), cluster, current)


def _blind_speedups(choices: Choices) -> NDArray[np.float64]:
    """[J, C] over the smallest count, the same for all types."""
    mean = np.zeros_like(choices.rates)
    for count in np.unique(choices.num_gpus):
        columns = np.flatnonzero(choices.num_gpus == count)
        runs = choices.rates[:, columns] > 0
        average = choices.rates[:, columns].sum(axis=1) / np.maximum(runs.sum(axis=1), 1)
        mean[:, columns] = np.where(runs, average[:, None], 0.0)
    lowest = np.where(mean > 0, mean, np.inf).min(axis=1, initial=np.inf)
    return mean / np.where(np.isfinite(lowest), lowest, 1.0)[:, None]
