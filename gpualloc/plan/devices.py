"""From "so many GPUs of that node, then" to concrete GPUs: what NVLink joins is kept together, then what shares a NUMA node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpualloc.plan.cluster_file import ClusterFile, ClusterNode
from gpualloc.plan.records import PlannedDevice


@dataclass(frozen=True, kw_only=True)
class Request:
    """A task that takes the same number of GPUs of each node."""

    name: str
    nodes: tuple[str, ...]
    gpus_per_node: int
    start_s: float
    finish_s: float
    kept: tuple[PlannedDevice, ...] = ()  # it runs on these already


def deal_devices(cluster: ClusterFile, requests: Sequence[Request]) -> dict[str, tuple[PlannedDevice, ...]]:
    """Request name -> devices, none given out twice at a time.

    In the order of starts, so that it works out whenever no node is asked for more than it has: who starts takes what is free then, and
    nobody who started earlier comes back for more.
    """
    free_from: dict[tuple[str, int], float] = {(node.name, index): 0.0 for node in cluster.nodes for index in range(node.num_gpus)}
    result: dict[str, tuple[PlannedDevice, ...]] = {}
    for request in sorted(requests, key=lambda each: (each.start_s, not each.kept, -each.gpus_per_node, each.name)):
        chosen: list[PlannedDevice] = list(request.kept)
        for name in () if request.kept else request.nodes:
            node = cluster.node(name)
            free = [index for index in node.available if free_from[name, index] <= request.start_s * (1 + 1e-12) + 1e-6]
            chosen += [node.planned_device(index) for index in choose(node, free, request.gpus_per_node)]
        for device in chosen:
            free_from[device.node, device.index] = request.finish_s
        result[request.name] = tuple(chosen)
    return result


def choose(node: ClusterNode, free: Sequence[int], count: int) -> list[int]:
    """`count` of the free GPUs: inside one island where one has enough, in the one that is left with the fewest; else over the fewest.

    Among equals the fewest NUMA nodes, then the lowest indices.
    """
    assert len(free) >= count, f"{node.name} has {len(free)} GPUs free of {count}"
    islands = _partition(node.islands, free)
    chosen: list[int] = []
    while len(chosen) < count:
        missing = count - len(chosen)
        enough = [island for island in islands if len(island) >= missing]
        island = min(enough, key=lambda each: (len(each), _numa_span(node, each, missing), each)) if enough else max(islands, key=len)
        chosen += _pick(node, island, min(missing, len(island)))
        islands = [[index for index in each if index not in chosen] for each in islands if each is not island]
    return sorted(chosen)


def num_islands(node: ClusterNode, indices: Sequence[int]) -> int:
    """Over how many NVLink islands these GPUs lie."""
    return len(_partition(node.islands, indices))


def _pick(node: ClusterNode, island: Sequence[int], count: int) -> list[int]:
    """From the NUMA node that is left with the fewest, else from the fullest ones."""
    groups, chosen = _partition(node.numa, island), list[int]()
    while len(chosen) < count:
        missing = count - len(chosen)
        enough = [group for group in groups if len(group) >= missing]
        group = min(enough, key=lambda each: (len(each), each)) if enough else max(groups, key=len)
        chosen += group[:missing]
        groups = [each for each in groups if each is not group]
    return chosen


def _numa_span(node: ClusterNode, island: Sequence[int], count: int) -> int:
    sizes = sorted((len(group) for group in _partition(node.numa, island)), reverse=True)
    span = 0
    while count > 0:
        count -= sizes[span]
        span += 1
    return span


def _partition(groups: Sequence[Sequence[int]], indices: Sequence[int]) -> list[list[int]]:
    """The indices by group; those in none are together."""
    if not groups:
        return [sorted(indices)]
    parts = [sorted(set(group) & set(indices)) for group in groups]
    rest = sorted(set(indices) - {index for group in groups for index in group})
    return [part for part in [*parts, rest] if part]
