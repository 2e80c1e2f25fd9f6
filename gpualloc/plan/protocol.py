"""What a policy is given and what it answers: `allocate(now_s, jobs, cluster, current) -> Plan`.

Nothing else is needed, so a policy drops into any scheduler or simulator that can answer `rate` for a job and count GPUs on nodes.
The records here (`Job`, `Node`, `Cluster`) are one way to offer that; any object with the same attributes will do. Free of torch and scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, int]  # (num_nodes, num_gpus)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """GPUs of one type on concrete nodes. Equal allocations mean that a running job is left where it is."""

    gpu_type: str
    gpus_by_node: tuple[tuple[str, int], ...]  # (node_id, GPUs there > 0), sorted by node_id

    @classmethod
    def of(cls, gpu_type: str, gpus_by_node: Mapping[str, int]) -> Allocation:
        """From a mapping of node_id to GPUs; nodes with 0 are left out."""
        return cls(gpu_type=gpu_type, gpus_by_node=tuple(sorted((node, count) for node, count in gpus_by_node.items() if count > 0)))

    @property
    def num_nodes(self) -> int:
        """Nodes that it is spread over."""
        return len(self.gpus_by_node)

    @property
    def num_gpus(self) -> int:
        """GPUs on all of its nodes together."""
        return sum(count for _, count in self.gpus_by_node)

    @property
    def shape(self) -> Shape:
        """(num_nodes, num_gpus): what a rate depends on."""
        return self.num_nodes, self.num_gpus


Plan: TypeAlias = Mapping[str, Allocation]  # job_id -> what it holds until the next round; a job that is not in it holds nothing


@runtime_checkable
class JobView(Protocol):
    """A job as a policy sees it. Progress has any unit of the job's own (samples, tokens, epochs); only ratios are used.

    Two more attributes are used where a view has them: `rates(gpu_type, shapes)`, the vectorised form of `rate` (see `rates_of`), and
    `preemptible` (False: once started, the job keeps what it holds; default True).
    """

    @property
    def job_id(self) -> str:
        """Its own among all jobs."""

    @property
    def min_gpus(self) -> int:
        """Fewer than these it cannot use."""

    @property
    def max_gpus(self) -> int:
        """More than these it must not get."""

    @property
    def gpu_types(self) -> Collection[str] | None:
        """The types that it may run on; None: any."""

    @property
    def age_s(self) -> float:
        """Seconds since it was submitted."""

    @property
    def num_restarts(self) -> int:
        """How often it was started or moved, its first start left out."""

    @property
    def restart_cost_s(self) -> float:
        """Seconds without progress at each start and each change of its allocation."""

    @property
    def progress_done(self) -> float:
        """What it has done, in its own unit."""

    @property
    def progress_left(self) -> float | None:
        """What it declares to be left, which may be wrong; None where it declares nothing."""

    @property
    def weight(self) -> float:
        """Its importance; 1 for all means the plain mean of completion times."""

    def rate(self, gpu_type: str, num_nodes: int, num_gpus: int) -> float | None:
        """Progress per second, with the best batch for these GPUs; None or 0 where it cannot run so (memory, counts)."""


class NodeView(Protocol):
    """A machine whose GPUs are of one type."""

    @property
    def node_id(self) -> str:
        """Its own among all nodes."""

    @property
    def gpu_type(self) -> str:
        """The name by which jobs and rates know its GPUs."""

    @property
    def num_gpus(self) -> int:
        """GPUs that may be handed out: those that `current` holds are among them, reserved, busy and broken ones are not."""


class ClusterView(Protocol):
    """The machines that may be used."""

    @property
    def nodes(self) -> Sequence[NodeView]:
        """All of them, of any types."""


class Policy(Protocol):
    """A pure function of its arguments: same input, same plan.

    A plan never holds more GPUs than there are, gives a job all of what `rate` was asked for or nothing, and keeps to its counts and types.
    """

    @property
    def name(self) -> str:
        """By which it is chosen and shown."""

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> Plan:
        """Who holds what until the next call.

        Args:
            now_s: a clock of any origin, in seconds.
            jobs: all that are submitted and not finished, waiting or running.
            cluster: the nodes that may be used.
            current: what runs; an equal allocation in the answer costs no restart.
        """


@dataclass(frozen=True, kw_only=True)
class Node:
    """A `NodeView` of plain values."""

    node_id: str
    gpu_type: str
    num_gpus: int


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A `ClusterView` of plain values."""

    nodes: tuple[Node, ...]

    @property
    def num_gpus(self) -> int:
        """GPUs on all nodes together."""
        return sum(node.num_gpus for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A `JobView` over a function that tells rates."""

    job_id: str
    rate_of: Callable[[str, int, int], float | None] = field(repr=False)  # (gpu_type, num_nodes, num_gpus) -> progress per second
    min_gpus: int = 1
    max_gpus: int = 2**31
    gpu_types: Collection[str] | None = None
    age_s: float = 0.0
    num_restarts: int = 0
    restart_cost_s: float = 30.0  # an assumption: read a checkpoint, start the processes
    progress_done: float = 0.0
    progress_left: float | None = None
    weight: float = 1.0
    preemptible: bool = True

    def rate(self, gpu_type: str, num_nodes: int, num_gpus: int) -> float | None:
        """What `rate_of` says."""
        return self.rate_of(gpu_type, num_nodes, num_gpus)


def rates_of(job: JobView, gpu_type: str, shapes: Sequence[Shape]) -> NDArray[np.float64]:
    """Rates [num_shapes] in progress per second, 0 where the job cannot or may not run: through its `rates` where it has one."""
    if job.gpu_types is not None and gpu_type not in job.gpu_types:
        return np.zeros(len(shapes))
    many: Any = getattr(job, "rates", None)
    if many is not None:
        raw = np.asarray(many(gpu_type, shapes), dtype=np.float64)
    else:
        raw = np.array([job.rate(gpu_type, nodes, gpus) or 0.0 for nodes, gpus in shapes], dtype=np.float64)
    counts = np.array([gpus for _, gpus in shapes])
    is_usable = np.isfinite(raw) & (raw > 0) & (counts >= job.min_gpus) & (counts <= job.max_gpus)
    return np.where(is_usable, raw, 0.0)


def is_preemptible(job: JobView) -> bool:
    """Whether what the job holds may be changed once it runs; True where its view does not say."""
    return bool(getattr(job, "preemptible", True))
