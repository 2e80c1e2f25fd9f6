"""Greedy by goodput: GPU after GPU to the change that adds the most normalised goodput per GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.plan.assignment import solve_greedily
from gpualloc.plan.choices import choices_of, keep_fixed
from gpualloc.plan.placement import place
from gpualloc.plan.policies.sia import restart_discount
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Goodput is over the job's lowest one, and counts by Pollux's restart discount where it needs a change."""

    name: str = "greedy"

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        goodput = choices.rates / choices.base_rates()[:, None]
        goodput = goodput * np.where(choices.is_held(), 1.0, restart_discount(choices)[:, None])
        values = keep_fixed(choices.attribute("weight")[:, None] * goodput, choices)
        return place(choices, solve_greedily(values, choices.type_of, choices.num_gpus, choices.capacity), cluster, current)
