"""Shortest remaining time first, preemptive, with fixed counts; jobs that declare no work count as half done (Lindy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.plan.choices import choices_of
from gpualloc.plan.placement import place
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan
from gpualloc.plan.rigid import fill_in_order, preferred


@dataclass(frozen=True, kw_only=True)
class ShortestRemainingTimeFirst:
    name: str = "srtf"

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        wanted = preferred(choices)
        left = choices.attribute("progress_left")
        left = np.where(np.isnan(left), choices.attribute("progress_done"), left)
        fastest = np.where(wanted, choices.rates, 0.0).max(axis=1, initial=0.0)
        order = np.argsort(left / np.maximum(fastest, 1e-300), kind="stable")
        return place(choices, fill_in_order(choices, order.tolist(), wanted), cluster, current)
