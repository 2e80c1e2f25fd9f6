"""From choices to concrete nodes: gangs whole, running jobs left in place, few fragments.

Jobs that keep their choice keep their nodes. The others are placed largest first: several nodes take whole ones, the rest goes where it
leaves the least free (best fit). Where fragments are in the way, the fewest GPUs' worth of smaller jobs move. With nodes and counts that
are powers of two this always succeeds; else a job that finds no room gets a smaller shape, or waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.choices import Choices, gpus_on_nodes
from gpualloc.plan.protocol import Allocation, ClusterView, Plan


def place(choices: Choices, chosen: NDArray[np.int64], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
    """Allocations of the jobs with a choice (an index of `choices`, -1: none), in order of job_id.

    Args:
        choices: of the same jobs and cluster.
        chosen: [J].
        cluster: where to.
        current: what runs.
    """
    plan: dict[str, Allocation] = {}
    for kind, gpu_type in enumerate(choices.gpu_types):
        rows = np.flatnonzero((chosen >= 0) & (choices.type_of[chosen] == kind)) if len(choices.type_of) else np.array([], dtype=np.int64)
        pool = _Pool.of(gpu_type, cluster)
        waiting: list[tuple[int, int]] = []
        for row in rows.tolist():
            if chosen[row] == choices.held[row]:
                pool.take(row, dict(current[choices.jobs[row].job_id].gpus_by_node), is_movable=not choices.is_fixed[row])
            else:
                waiting.append((-int(choices.num_gpus[chosen[row]]), row))
        heapq.heapify(waiting)
        while waiting:
            _, row = heapq.heappop(waiting)
            for choice in _fallbacks(choices, row, int(chosen[row]), kind):
                moved = pool.put(row, gpus_on_nodes(pool.sizes, choices.shapes[choice]))
                if moved is not None:
                    for other in moved:
                        heapq.heappush(waiting, (-int(choices.num_gpus[chosen[other]]), other))
                    break
        for row, nodes in pool.held.items():
            plan[choices.jobs[row].job_id] = Allocation.of(gpu_type, {pool.node_ids[node]: count for node, count in nodes.items()})
    return dict(sorted(plan.items()))


def _fallbacks(choices: Choices, row: int, wanted: int, kind: int) -> list[int]:
    smaller = (choices.type_of == kind) & (choices.num_gpus < choices.num_gpus[wanted]) & (choices.rates[row] > 0)
    return [wanted, *np.flatnonzero(smaller)[::-1].tolist()]


@dataclass
class _Pool:
    """The nodes of one GPU type and who holds what there; rows are jobs."""

    node_ids: list[str]
    index: dict[str, int]  # node_id -> node
    sizes: list[int]
    free: list[int]
    held: dict[int, dict[int, int]] = field(default_factory=dict)  # row -> {node: GPUs}
    tenants: list[set[int]] = field(default_factory=list)  # by node
    movable: set[int] = field(default_factory=set)
    by_free: dict[int, list[int]] = field(default_factory=dict)  # heaps of nodes; an entry is stale once the node's free count differs

    @classmethod
    def of(cls, gpu_type: str, cluster: ClusterView) -> _Pool:
        nodes = sorted((node.node_id, node.num_gpus) for node in cluster.nodes if node.gpu_type == gpu_type and node.num_gpus > 0)
        sizes = [count for _, count in nodes]
        index = {node_id: node for node, (node_id, _) in enumerate(nodes)}
        pool = cls(list(index), index, sizes, list(sizes), tenants=[set() for _ in nodes])
        for node, count in enumerate(sizes):
            pool.by_free.setdefault(count, []).append(node)
        return pool

    def take(self, row: int, gpus_by_node_id: Mapping[str, int], *, is_movable: bool) -> None:
        self._hold(row, {self.index[node]: count for node, count in gpus_by_node_id.items()}, is_movable=is_movable)

    def put(self, row: int, counts: Sequence[int]) -> list[int] | None:
        """Finds nodes for a gang with `counts` GPUs on each; returns the jobs that had to leave, None where there is no room."""
        nodes = self._fitting(counts)
        moved: list[int] = []
        if nodes is None:
            cleared = self._clearing(counts)
            if cleared is None:
                return None
            nodes, moved = cleared
            for other in moved:
                self._release(other)
        self._hold(row, dict(zip(nodes, counts, strict=True)), is_movable=len(counts) == 1)
        return moved

    def _fitting(self, counts: Sequence[int]) -> list[int] | None:
        found: list[int] = []
        popped: list[tuple[int, int]] = []
        for count in counts:
            node = self._best_fit(count, popped)
            if node is None:
                break
            found.append(node)
        for free, node in popped:  # back in their heaps: holding them is the caller's part
            heapq.heappush(self.by_free[free], node)
        return found if len(found) == len(counts) else None

    def _best_fit(self, count: int, popped: list[tuple[int, int]]) -> int | None:
        for free in sorted(level for level in self.by_free if level >= count):
            heap = self.by_free[free]
            while heap:
                node = heapq.heappop(heap)
                if self.free[node] == free and (free, node) not in popped:
                    popped.append((free, node))
                    return node
        return None

    def _clearing(self, counts: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """The nodes where the fewest GPUs have to move to make room, and the jobs to move: movable ones that are smaller than the gang."""
        total = sum(counts)
        costs = []
        for node in range(len(self.sizes)):
            need = counts[0] - self.free[node]
            leave: list[int] = []
            for row in sorted(self.tenants[node], key=lambda row: (self.held[row][node], row)):
                if need <= 0:
                    break
                if row in self.movable and self.held[row][node] < total:
                    leave.append(row)
                    need -= self.held[row][node]
            if need <= 0:
                costs.append((sum(self.held[row][node] for row in leave), node, leave))
        if len(costs) < len(counts):
            return None
        best = sorted(costs, key=lambda cost: cost[:2])[: len(counts)]
        return [node for _, node, _ in best], [row for _, _, leave in best for row in leave]

    def _hold(self, row: int, nodes: dict[int, int], *, is_movable: bool) -> None:
        self.held[row] = nodes
        if is_movable and len(nodes) == 1:
            self.movable.add(row)
        for node, count in nodes.items():
            self.tenants[node].add(row)
            self._set_free(node, self.free[node] - count)

    def _release(self, row: int) -> None:
        self.movable.discard(row)
        for node, count in self.held.pop(row).items():
            self.tenants[node].discard(row)
            self._set_free(node, self.free[node] + count)

    def _set_free(self, node: int, count: int) -> None:
        self.free[node] = count
        heapq.heappush(self.by_free.setdefault(count, []), node)
