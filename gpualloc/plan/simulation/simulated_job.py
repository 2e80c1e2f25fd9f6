"""A job while it is simulated: what the policy is told of it, which may be wrong, and what is true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.protocol import Allocation, Shape
from gpualloc.plan.simulation.job_types import NUM_LEVELS, JobType
from gpualloc.plan.simulation.trace import TraceJob


@dataclass
class SimulatedJob:
    """A job of the trace as the policy sees it, and its true state."""

    trace: TraceJob
    job_type: JobType
    total_progress: float
    declared_factor: float | None
    rate_factors: dict[str, float]
    max_growth: float | None
    now_s: float = 0.0
    progress_done: float = 0.0
    num_restarts: int = 0
    most_gpus: int = 0
    waits_until_s: float = 0.0  # end of its (re)start
    start_s: float = math.nan
    gpu_seconds: float = 0.0
    contention_s: float = 0.0
    failed: bool = False

    @property
    def job_id(self) -> str:
        return self.trace.job_id

    @property
    def min_gpus(self) -> int:
        return self.trace.min_gpus

    @property
    def max_gpus(self) -> int:
        if self.max_growth is None:
            return self.trace.max_gpus
        return max(
            self.trace.min_gpus,
            min(
                self.trace.max_gpus,
                int(self.max_growth * self.most_gpus),
            ),
            1,
        )

    @property
    def gpu_types(self) -> tuple[str, ...] | None:
        return self.trace.gpu_types

    @property
    def age_s(self) -> float:
        return self.now_s - self.trace.submit_s

    @property
    def restart_cost_s(self) -> float:
        return self.job_type.training.restart_cost_s

    @property
    def progress_left(self) -> float | None:
        if self.declared_factor is None:
            return None
        return (self.total_progress - self.progress_done) * self.declared_factor

    @property
    def weight(self) -> float:
        return self.trace.weight

    def level(self) -> int:
        return min(int(self.progress_done / self.total_progress * NUM_LEVELS), NUM_LEVELS - 1)

    def rates(self, gpu_type: str, shapes: Sequence[Shape]) -> NDArray[np.float64]:
        true: NDArray[np.float64] = self.job_type.goodputs(gpu_type, tuple(shapes))[self.level()]
        factor = self.rate_factors.get(gpu_type)
        return true if factor is None else np.multiply(true, factor)

    def rate(self, gpu_type: str, num_nodes: int, num_gpus: int) -> float | None:
        return float(self.rates(gpu_type, ((num_nodes, num_gpus),))[0]) or None

    def true_rate(self, allocation: Allocation) -> float:
        return float(self.job_type.goodputs(allocation.gpu_type, (allocation.shape,))[self.level(), 0])
