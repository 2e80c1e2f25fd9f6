"""Forecasts to compare with: linear scaling, the universal scalability law and Pollux's model, from the equations of their papers.

Each takes the rows of one job on one cluster alone and returns a function from queries to step times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

from gpualloc.scaling import StepQuery, StepRow

Predictor = Callable[[Sequence[StepQuery]], np.ndarray]


def linear_scaling(rows: Sequence[StepRow]) -> Predictor:
    """A line over the batch, the same on every number of GPUs."""
    used = [row for row in rows if row.num_gpus == 1] or list(rows)
    line = _line(_batches(used), _times(used))
    return lambda queries: np.maximum(line(_batches(queries)), 1e-6)


def universal_scalability(rows: Sequence[StepRow]) -> Predictor:
    """time = line(batch) * (1 + sigma (N - 1) + kappa N (N - 1)) under weak scaling. Gunther, "A general theory of computational
    scalability based on rational functions", 2008."""
    batches, times, gpus = _batches(rows), _times(rows), _gpus(rows)

    def predict(p: np.ndarray, b: np.ndarray, n: np.ndarray) -> np.ndarray:
        return (np.exp(p[0]) + np.exp(p[1]) * b) * (1 + np.exp(p[2]) * (n - 1) + np.exp(p[3]) * n * (n - 1))

    start = np.array([np.log(times.min() / 2), np.log(times.min() / 2 / batches.min()), -3.0, -8.0])
    bounds = [(-20, 5), (-25, 5), (-12, 3), (-16, 1)]
    if gpus.max() == 1:  # nothing tells of contention
        start[2:], bounds[2:] = [-12, -16], [(-12, -12), (-16, -16)]
    fitted = minimize(
        lambda p: np.mean((np.log(predict(p, batches, gpus)) - np.log(times)) ** 2), start, bounds=bounds, method="L-BFGS-B"
    ).x
    return lambda queries: predict(fitted, _batches(queries), _gpus(queries))


def pollux(rows: Sequence[StepRow]) -> Predictor:
    """Seven parameters. Qiao et al., "Pollux: Co-adaptive cluster scheduling for goodput-optimized deep learning", OSDI 2021, section 4.1.

    T_grad = a_c + b_c batch (equation 9); T_sync = 0 on one GPU, a_l + b_l (N - 2) on one node, a_n + b_n (N - 2) on several (10);
    T = (T_grad^g + T_sync^g)^(1/g), 1 <= g <= 10 (equation 11). Fitted to the root mean squared logarithmic error of the step and of its
    compute part. Priors where data are thin, as in section 4.1: what was not run yet scales perfectly: no synchronisation before two
    GPUs, none between nodes beyond that of a node before two nodes, no growth before three GPUs; and a small pull of g towards 1.
    """
    batches, times, gpus = _batches(rows), _times(rows), _gpus(rows)
    nodes = np.array([row.num_nodes for row in rows], dtype=float)
    compute = np.array([row.step_time_s - (row.sync_time_s or 0.0) * (row.num_gpus > 1) for row in rows])
    compute = np.maximum(compute, 0.05 * times)
    seen_inside, seen_across = bool(((gpus > 1) & (nodes == 1)).any()), bool((nodes > 1).any())
    off = -20.0

    def parts(p: np.ndarray, b: np.ndarray, n: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grad = np.exp(p[0]) + np.exp(p[1]) * b
        inside = np.exp(p[2]) + np.exp(p[3]) * np.maximum(n - 2, 0)
        across = np.exp(p[4]) + np.exp(p[5]) * np.maximum(n - 2, 0)
        sync = np.where(n == 1, 0.0, np.where(k == 1, inside, across))
        return grad, (grad ** p[6] + sync ** p[6]) ** (1 / p[6])

    def tied(p: np.ndarray) -> np.ndarray:
        full = p.copy()
        if not seen_across:
            full[4:6] = full[2:4]
        return full

    def error(p: np.ndarray) -> float:
        grad, step = parts(tied(p), batches, gpus, nodes)
        errors = [np.sqrt(np.mean((np.log(got) - np.log(want)) ** 2)) for got, want in ((grad, compute), (step, times))]
        return float(sum(errors) + 1e-3 * (p[6] - 1) ** 2)

    level = np.log(times.min())
    bounds = [(off, 5.0)] * 6 + [(1.0, 10.0)]
    start = np.array([level - 0.7, level - 0.7 - np.log(batches.min()), level - 2, level - 5, level - 2, level - 5, 2.0])
    for place, is_seen in ((2, seen_inside or seen_across), (3, gpus.max() > 2), (4, seen_across), (5, seen_across and gpus.max() > 2)):
        if not is_seen:
            start[place], bounds[place] = off, (off, off)
    starts = [start + np.array([*([0.0] * 6), off_gamma]) for off_gamma in (-0.5, 1.0)]
    fitted = tied(min((minimize(error, each, bounds=bounds, method="L-BFGS-B") for each in starts), key=lambda found: found.fun).x)
    return lambda queries: parts(fitted, _batches(queries), _gpus(queries), np.array([q.num_nodes for q in queries], dtype=float))[1]


def _line(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from scipy.optimize import nnls

    (intercept, slope), _ = nnls(np.stack([1 / y, x / y], 1), np.ones(len(y)))
    return lambda at: intercept + slope * at


def _batches(rows: Sequence[StepQuery]) -> np.ndarray:
    return np.array([row.per_device_batch_size for row in rows], dtype=float)


def _gpus(rows: Sequence[StepQuery]) -> np.ndarray:
    return np.array([row.num_gpus for row in rows], dtype=float)


def _times(rows: Sequence[StepRow]) -> np.ndarray:
    return np.array([row.step_time_s for row in rows])
