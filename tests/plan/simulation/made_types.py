"""A job type whose goodput is plain: one step a second on each GPU, no noise, no overhead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.protocol import Shape
from gpualloc.plan.simulation.job_types import JobType, Training


class LinearSteps:
    """A step at the one batch that there is takes 1 / num_gpus seconds."""

    local_batch_range = (1e-9, 1.0)

    def at(self, shape: Shape, local_batch_sizes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.full(len(local_batch_sizes), 1.0 / shape[1]), np.zeros(len(local_batch_sizes))


def linear_type(
    name: str = "plain", *, seconds_on_one_gpu: float = 1000.0, restart_cost_s: float = 10.0, category: str = "small"
) -> JobType:
    training = Training(
        name=name,
        kind="image",
        category=category,
        init_batch_size=1,
        max_batch_size=1,
        total_progress=seconds_on_one_gpu,
        noise_ratio=(1.0, 1.0),
        restart_cost_s=restart_cost_s,
    )
    return JobType(training=training, steps={"t4": LinearSteps()})
