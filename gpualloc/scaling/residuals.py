"""What the equation leaves over, learned where a job was measured: a Gaussian process over placement and batch, one for each job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.scaling.placement import Array, describe
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.records import StepQuery

_MOST_ROWS = 500
_LARGEST = 0.5  # of a residual, in logarithms: beyond it a row is an outlier


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """One job's residuals on one cluster."""

    points: Array  # [n, 5]
    keys: tuple[str, ...]
    values: Array  # the residuals, [n]
    noise: Array  # standard deviation of each, [n]
    inverse: Array  # of their covariance, [n, n]

    def __call__(self, queries: Sequence[StepQuery], priors: Priors) -> tuple[Array, Array]:
        """(correction of log step time, its variance)."""
        points, keys = _points(queries, priors)
        prior = np.full(len(queries), priors.residual_smooth**2 + priors.residual_placement**2)
        if not len(self.keys):
            return np.zeros(len(queries)), prior
        cross = _covariance(points, keys, self.points, self.keys, priors)
        single = cross.astype(np.float32)  # enough for a variance, and twice as fast
        explained = ((single @ self.inverse.astype(np.float32)) * single).sum(1)
        return cross @ (self.inverse @ self.values), np.maximum(prior - explained, 0.0)


def fit_residuals(queries: Sequence[StepQuery], residuals: Array, noise: Array, priors: Priors) -> Residuals:
    """The process given the residuals (log measured - log fitted) of rows; `noise` is the standard deviation of each."""
    chosen = np.linspace(0, len(queries) - 1, min(len(queries), _MOST_ROWS)).round().astype(int)
    picked = [queries[i] for i in chosen]
    points, keys = _points(picked, priors) if picked else (np.zeros((0, 5)), ())
    return restore_residuals(points, keys, np.clip(residuals[chosen], -_LARGEST, _LARGEST), noise[chosen], priors)


def restore_residuals(points: Array, keys: tuple[str, ...], values: Array, noise: Array, priors: Priors) -> Residuals:
    """The process again, from what it was fitted to."""
    covariance = _covariance(points, keys, points, keys, priors) + np.diag(noise**2) if keys else np.zeros((0, 0))
    return Residuals(points=points, keys=keys, values=values, noise=noise, inverse=np.linalg.inv(covariance) if keys else covariance)


def _points(queries: Sequence[StepQuery], priors: Priors) -> tuple[Array, tuple[str, ...]]:
    places = describe(queries)
    batch = np.log2([query.per_device_batch_size for query in queries]) + np.log2([query.size() for query in queries])
    far = 3.0  # lengths between a placement inside a node and one across nodes
    scaled = [places.log_nodes / priors.residual_length, places.log_mean / priors.residual_length]
    return np.stack([*scaled, far * places.is_across, far * places.is_inside, batch / priors.residual_batch_length], 1), places.keys


def _covariance(a: Array, keys_a: Sequence[str], b: Array, keys_b: Sequence[str], priors: Priors) -> Array:
    """Exponential in the distance, plus what the rows of one placement share."""
    distance = np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys_b))}
    is_same = np.array([numbers.get(key, -1) for key in keys_a])[:, None] == np.array([numbers[key] for key in keys_b])[None]
    return np.asarray(priors.residual_smooth**2 * np.exp(-distance) + priors.residual_placement**2 * is_same)
