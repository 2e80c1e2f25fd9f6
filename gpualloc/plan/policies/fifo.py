"""First in, first out: fixed counts, no preemption, the head of the queue blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.plan.choices import choices_of
from gpualloc.plan.placement import place
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan
from gpualloc.plan.rigid import fill_in_order, preferred


@dataclass(frozen=True, kw_only=True)
class FirstInFirstOut:
    name: str = "fifo"

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        wanted = np.where((choices.held >= 0)[:, None], choices.is_held(), preferred(choices))
        order = np.lexsort((-choices.attribute("age_s"), choices.held < 0))
        return place(choices, fill_in_order(choices, order.tolist(), wanted, is_strict=True), cluster, current)
