"""Jobs with a fixed number of GPUs, served in some order: what the policies that do not choose counts have in common."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.choices import Choices

LEAST_EFFICIENCY = 0.5  # an assumption of what users ask for: as many GPUs as keep half the rate per GPU (Sia's traces take 0.5 to 0.8)


def preferred(choices: Choices) -> NDArray[np.bool_]:
    """[J, C] whether a choice is the largest count of its GPU type at which a GPU still does `LEAST_EFFICIENCY` of what it does at best."""
    per_gpu = choices.rates / choices.num_gpus
    result = np.zeros_like(per_gpu, dtype=np.bool_)
    for kind in range(len(choices.gpu_types)):
        columns = np.flatnonzero(choices.type_of == kind)
        block = per_gpu[:, columns]
        is_efficient = (block > 0) & (block >= LEAST_EFFICIENCY * block.max(axis=1, initial=0.0)[:, None])
        counts = np.where(is_efficient, choices.num_gpus[columns], -1)
        rows = np.flatnonzero(is_efficient.any(axis=1))
        result[rows, columns[counts[rows].argmax(axis=1)]] = True
    return result


def fill_in_order(choices: Choices, order: Iterable[int], wanted: NDArray[np.bool_], *, is_strict: bool = False) -> NDArray[np.int64]:
    """[J] choices: each job in turn takes the fastest wanted one that its GPU type still has room for, its present one where it fits.

    Args:
        choices: of the jobs.
        order: rows, the first to be served first; jobs that are not preemptible go before all.
        wanted: [J, C].
        is_strict: the first that finds no room blocks those behind it.
    """
    chosen = np.full(len(choices.jobs), -1, dtype=np.int64)
    free = choices.capacity.copy()
    rows = list(order)
    for row in [*np.flatnonzero(choices.is_fixed).tolist(), *(row for row in rows if not choices.is_fixed[row])]:
        held = int(choices.held[row])
        if held >= 0 and (wanted[row, held] or choices.is_fixed[row]) and choices.num_gpus[held] <= free[choices.type_of[held]]:
            choice = held
        else:
            fits = wanted[row] & (choices.num_gpus <= free[choices.type_of])
            if not fits.any():
                if is_strict and wanted[row].any():
                    break
                continue
            choice = int(np.where(fits, choices.rates[row], -np.inf).argmax())
        chosen[row] = choice
        free[choices.type_of[choice]] -= choices.num_gpus[choice]
        if not free.any():
            break
    return chosen
