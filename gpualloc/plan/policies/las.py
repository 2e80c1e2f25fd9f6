"""Tiresias-like least attained service: queues by service so far, first in first out within each (Gu et al., NSDI 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.plan.choices import choices_of
from gpualloc.plan.placement import place
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan
from gpualloc.plan.rigid import fill_in_order, preferred


@dataclass(frozen=True, kw_only=True)
class LeastAttainedService:
    """Preemptive, with fixed counts. Service is GPU time on the job's slowest GPU: progress so far over its lowest rate."""

    name: str = "las"
    first_queue_s: float = 3600.0  # service that leaves the first queue
    queue_ratio: float = 10.0  # of each further queue to the one before

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        service_s = choices.attribute("progress_done") / choices.base_rates()
        queue = np.floor(np.log(np.maximum(service_s / self.first_queue_s, 1 / self.queue_ratio)) / np.log(self.queue_ratio))
        order = np.lexsort((-choices.attribute("age_s"), queue))
        return place(choices, fill_in_order(choices, order.tolist(), preferred(choices)), cluster, current)
