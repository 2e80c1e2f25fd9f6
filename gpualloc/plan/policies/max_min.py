"""Max-min fairness over GPU types with fixed counts (Narayanan et al., Gavel, OSDI 2020, sections 3.1 and 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.choices import Choices, choices_of
from gpualloc.plan.placement import place
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan
from gpualloc.plan.rigid import fill_in_order, preferred


@dataclass(frozen=True, kw_only=True)
class MaxMin:
    """maximise min_j (1 / w_j) sum_t rate_jt X_jt / rate_j, X_jt the share of time on type t, rate_j the mean over types.

    A round is given to the jobs that lag most behind their X: the ratio of the rate that X promises to progress over age so far.
    """

    name: str = "max_min"

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        wanted = preferred(choices)
        shares = _shares(choices, wanted)
        promised = (shares * choices.rates).sum(axis=1)
        so_far = choices.attribute("progress_done") / np.maximum(choices.attribute("age_s"), 1.0)
        order = np.argsort(-promised / np.maximum(so_far, 1e-9 * np.maximum(promised, 1e-300)), kind="stable")
        return place(choices, fill_in_order(choices, order.tolist(), wanted & (shares > 1e-6)), cluster, current)


def _shares(choices: Choices, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[J, C] shares of time, by linear programming."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    rows, columns = np.nonzero(wanted)
    shares = np.zeros(wanted.shape)
    if not len(rows):
        return shares
    num_jobs, count = len(choices.jobs), len(rows)
    mean = np.where(wanted, choices.rates, 0.0).sum(axis=1) / np.maximum(wanted.sum(axis=1), 1)
    entry = np.arange(count)
    runs = np.unique(rows)
    # sum X <= 1 for each job, sum GPUs X <= capacity for each type, least - sum rate X / mean <= 0 for each job
    data = [
        (np.ones(count), rows, entry),
        (choices.num_gpus[columns].astype(float), num_jobs + choices.type_of[columns], entry),
        (
            -choices.rates[rows, columns] / mean[rows] / choices.attribute("weight")[rows],
            num_jobs + len(choices.capacity) + rows,
            entry,
        ),
        (np.ones(len(runs)), num_jobs + len(choices.capacity) + runs, np.full(len(runs), count)),
    ]
    values, places, entries = (np.concatenate(parts) for parts in zip(*data, strict=True))
    matrix = csr_matrix((values, (places, entries)), shape=(2 * num_jobs + len(choices.capacity), count + 1))
    bound = np.concatenate([np.ones(num_jobs), choices.capacity, np.zeros(num_jobs)])
    objective = np.zeros(count + 1)
    objective[-1] = -1.0
    objective[:-1] = -1e-6 * choices.rates[rows, columns] / mean[rows]  # among equals, the most throughput
    result = linprog(objective, A_ub=matrix, b_ub=bound, bounds=(0, None), method="highs")
    if result.x is not None:
        shares[rows, columns] = result.x[:-1]
    return shares
