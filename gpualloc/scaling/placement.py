"""Where the GPUs of a step sit, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpualloc.scaling.records import StepQuery

Array = NDArray[np.floating[Any]]
ALONE = "1/1"  # the key of a single GPU


@dataclass(frozen=True, kw_only=True)
class Placements:
    """One entry per row, logarithms to base 2 so that a doubling is 1."""

    log_nodes: Array
    log_mean: Array  # GPUs of a node on average
    log_max: Array  # GPUs of the fullest node; the ceiling of the average where the placement is unknown
    is_multi: Array  # 1 where there is more than one GPU
    is_inside: Array  # 1 where several GPUs share one node
    is_across: Array  # 1 where there are several nodes
    is_pair: Array  # 1 for two nodes, which a ring crosses differently from more
    keys: tuple[str, ...]  # equal where placements are the same


def describe(queries: Sequence[StepQuery]) -> Placements:
    """The placements of rows or queries."""
    nodes = np.array([query.num_nodes for query in queries], dtype=float)
    gpus = np.array([query.num_gpus for query in queries], dtype=float)
    counts = [query.node_counts() or ((1,) * query.num_nodes if query.num_gpus == query.num_nodes else None) for query in queries]
    return Placements(
        log_nodes=np.log2(nodes),
        log_mean=np.log2(gpus / nodes),
        log_max=np.log2(np.array([query.fullest_node() for query in queries], dtype=float)),
        is_multi=(gpus > 1) * 1.0,
        is_inside=((nodes == 1) & (gpus > 1)) * 1.0,
        is_across=(nodes > 1) * 1.0,
        is_pair=(nodes == 2) * 1.0,
        keys=tuple(placement_key(query, count) for query, count in zip(queries, counts, strict=True)),
    )


def placement_key(query: StepQuery, counts: tuple[int, ...] | None) -> str:
    """Names a placement: the counts where they are known, else the totals."""
    return "+".join(map(str, counts)) if counts and len(counts) > 1 else f"{query.num_gpus}/{query.num_nodes}"


def spread_out(points: Array, most: int) -> Array:
    """Up to `most` of the distinct points, each as far from the others as can be: the centres of a smooth function. [m, d]"""
    distinct = np.unique(np.round(points, 3), axis=0)
    chosen = [0]
    distance = ((distinct - distinct[0]) ** 2).sum(1)
    while len(chosen) < min(most, len(distinct)) and distance.max() > 0.05:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((distinct - distinct[chosen[-1]]) ** 2).sum(1))
    return np.asarray(distinct[chosen])


def smooth_basis(points: Array, centres: Array, length: float) -> Array:
    """Columns whose standard-normal combinations are functions of a squared-exponential Gaussian process. [n, d] -> [n, m]

    Source: Quinonero-Candela and Rasmussen, "A unifying view of sparse approximate Gaussian process regression", JMLR 2005.
    """
    if not len(centres):
        return np.zeros((len(points), 0))

    def kernel(a: Array, b: Array) -> Any:
        return np.exp(-0.5 * ((a[:, None, :] - b[None]) ** 2).sum(-1) / length**2)

    root = np.linalg.cholesky(kernel(centres, centres) + 1e-6 * np.eye(len(centres)))
    return np.asarray(np.linalg.solve(root, kernel(points, centres).T).T)
