"""What each job could hold: the shapes that a cluster offers, and every job's rate at each of them as one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan, Shape, is_preemptible

_DENSE_NODES = 8  # up to it every number of whole nodes is offered, beyond it in steps of a quarter of the power of two below
_BOUND_VALUE = 1e9  # far above any value of a policy, and still exact beside them


@dataclass(frozen=True, kw_only=True)
class Choices:
    """J jobs (ordered by job_id, so that the order of the input does not matter), C choices of (gpu_type, shape), T GPU types."""

    jobs: tuple[JobView, ...]
    gpu_types: tuple[str, ...]  # [T]
    capacity: NDArray[np.int64]  # [T] GPUs that may be handed out
    type_of: NDArray[np.int64]  # [C] index into gpu_types
    shapes: tuple[Shape, ...]  # [C]
    num_gpus: NDArray[np.int64]  # [C]
    rates: NDArray[np.float64]  # [J, C] progress per second, 0 where the job cannot or may not run
    held: NDArray[np.int64]  # [J] choice that the job holds now, -1: none
    is_fixed: NDArray[np.bool_]  # [J] runs and is not preemptible: `held` has to stay

    def attribute(self, name: str) -> NDArray[np.float64]:
        """An attribute of all jobs [J]; None becomes NaN."""
        values = [getattr(job, name) for job in self.jobs]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def is_held(self) -> NDArray[np.bool_]:
        """[J, C] whether the choice is the one that the job holds."""
        result: NDArray[np.bool_] = np.arange(len(self.shapes))[None, :] == self.held[:, None]
        return result

    def base_rates(self) -> NDArray[np.float64]:
        """[J] the slowest rate at which a job can run at all: what Sia normalises by (Jayaram Subramanya et al., SOSP 2023, 3.3)."""
        lowest = np.where(self.rates > 0, self.rates, np.inf).min(axis=1, initial=np.inf)
        return np.where(np.isfinite(lowest), lowest, 1.0)


def shapes_of(node_sizes: Sequence[int]) -> list[Shape]:
    """What nodes of one type offer: powers of two and all GPUs of a node, then whole nodes (as in Sia, SOSP 2023, section 3.3)."""
    if not node_sizes:
        return []
    size, num_nodes = max(node_sizes), sum(1 for count in node_sizes if count == max(node_sizes))
    counts = {2**power for power in range(size.bit_length())} | {size}
    shapes = [(1, count) for count in sorted(counts)]
    nodes = 2
    while nodes <= num_nodes:
        shapes.append((nodes, nodes * size))
        nodes += 1 if nodes < _DENSE_NODES else 2 ** (nodes.bit_length() - 3)
    return shapes


def choices_of(jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> Choices:
    """Asks every job for its rates at every shape that the cluster offers.

    A job that allows none of these counts (3 GPUs, 12 on nodes of 8) gets its own smallest and largest one.
    """
    ordered = tuple(sorted(jobs, key=lambda job: job.job_id))
    sizes: dict[str, list[int]] = {}
    free_of = {}
    for node in cluster.nodes:
        free_of[node.node_id] = node.gpu_type, node.num_gpus
        if node.num_gpus > 0:
            sizes.setdefault(node.gpu_type, []).append(node.num_gpus)
    gpu_types = tuple(sorted(sizes))
    running = {job.job_id: current[job.job_id] for job in ordered if job.job_id in current}
    running = {job_id: held for job_id, held in running.items() if _still_stands(held, free_of)}
    odd = {count for low, high in {(job.min_gpus, job.max_gpus) for job in ordered} for count in (low, high)}
    by_type: list[tuple[Shape, ...]] = []
    for gpu_type in gpu_types:
        offered = shapes_of(sizes[gpu_type])
        total, size = sum(sizes[gpu_type]), max(sizes[gpu_type])
        own = {_shape_for(count, size) for count in odd if 1 < count <= total}
        held_shapes = {held.shape for held in running.values() if held.gpu_type == gpu_type}
        by_type.append(tuple(sorted({*offered, *own, *held_shapes}, key=lambda shape: (shape[1], shape[0]))))
    type_of = np.repeat(np.arange(len(gpu_types)), [len(shapes) for shapes in by_type]).astype(np.int64)
    shapes = tuple(shape for offered in by_type for shape in offered)
    num_gpus = np.array([shape[1] for shape in shapes], dtype=np.int64)
    place_of = {(gpu_types[kind], shape): index for index, (kind, shape) in enumerate(zip(type_of.tolist(), shapes, strict=True))}
    held = [place_of[running[job.job_id].gpu_type, running[job.job_id].shape] if job.job_id in running else -1 for job in ordered]
    held_array = np.array(held, dtype=np.int64)
    return Choices(
        jobs=ordered,
        gpu_types=gpu_types,
        capacity=np.array([sum(sizes[gpu_type]) for gpu_type in gpu_types], dtype=np.int64),
        type_of=type_of,
        shapes=shapes,
        num_gpus=num_gpus,
        rates=_rates(ordered, gpu_types, by_type, num_gpus),
        held=held_array,
        is_fixed=np.array([not is_preemptible(job) for job in ordered], dtype=np.bool_) & (held_array >= 0),
    )


def keep_fixed(values: NDArray[np.float64], choices: Choices) -> NDArray[np.float64]:
    """The values [J, C] with a job that is not preemptible bound to what it holds."""
    if not choices.is_fixed.any():
        return values
    bound = np.where(choices.is_held(), _BOUND_VALUE, -np.inf)
    return np.where(choices.is_fixed[:, None], bound, values)


def _still_stands(held: Allocation, free_of: dict[str, tuple[str, int]]) -> bool:
    return all(node in free_of and free_of[node][0] == held.gpu_type and free_of[node][1] >= count for node, count in held.gpus_by_node)


def _shape_for(count: int, size: int) -> Shape:
    return -(-count // size), count


def _rates(
    jobs: Sequence[JobView], gpu_types: Sequence[str], by_type: Sequence[tuple[Shape, ...]], num_gpus: NDArray[np.int64]
) -> NDArray[np.float64]:
    blocks = []
    for gpu_type, shapes in zip(gpu_types, by_type, strict=True):
        block = np.zeros((len(jobs), len(shapes)))
        for row, job in enumerate(jobs):
            if job.gpu_types is not None and gpu_type not in job.gpu_types:
                continue
            many: Any = getattr(job, "rates", None)
            if many is not None:
                block[row] = many(gpu_type, shapes)
            else:
                low, high = job.min_gpus, job.max_gpus
                block[row] = [(job.rate(gpu_type, nodes, gpus) or 0.0) if low <= gpus <= high else 0.0 for nodes, gpus in shapes]
        blocks.append(block)
    rates = np.hstack(blocks) if blocks else np.zeros((len(jobs), 0))
    lowest = np.array([job.min_gpus for job in jobs])[:, None]
    highest = np.array([job.max_gpus for job in jobs])[:, None]
    is_usable = np.isfinite(rates) & (rates > 0) & (num_gpus >= lowest) & (num_gpus <= highest)
    return np.where(is_usable, rates, 0.0)


def gpus_on_nodes(sizes: Sequence[int], shape: Shape) -> list[int]:
    """GPUs on each node of an allocation: whole nodes, the rest on the last."""
    num_nodes, left = shape
    counts = []
    for others in range(num_nodes - 1, -1, -1):
        counts.append(max(1, min(max(sizes), left - others)) if others else left)
        left -= counts[-1]
    return counts
