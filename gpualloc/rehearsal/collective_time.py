"""How long a collective takes on modelled links: one function per algorithm, then the choice among them.

n ranks on m nodes, l of them on each; S bytes as nccl-tests counts them (all-reduce: the tensor; all-gather: the whole output;
reduce-scatter: the whole input). Latency is what passes before the link is busy, transfer what it is busy for. The ring and tree
equations are those of NCCL's own choice between them (src/graph/tuning.cc): ring 2 (n - 1) hops and 2 (n - 1) / n S over the
slowest link; tree 2 log2 hops. Two-level: reduce-scatter inside the nodes, all-reduce between them, all-gather inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpualloc.rehearsal.link_model import LinkModel, interpolate

OPERATIONS = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "reduce",
    "all_to_all",
    "gather",
    "scatter",
    "point_to_point",
    "network_point_to_point",
)
_US = 1e-6
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class CollectiveTime:
    """What one collective takes alone on its links."""

    latency_s: float
    transfer_s: float
    demand: float  # share of the link's capacity that it uses while it transfers
    host_cpu_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.latency_s + self.transfer_s


@dataclass(frozen=True, kw_only=True)
class GroupTopology:
    """Where the ranks of a group are. The other GPUs of the nodes run groups of their own like it, and share the NICs."""

    num_ranks: int
    num_nodes: int
    gpus_per_node: int
    node_link: LinkModel | None  # None: no node has two ranks
    network: LinkModel | None  # None: there is one node

    @property
    def ranks_per_node(self) -> float:
        return self.num_ranks / self.num_nodes

    @property
    def link(self) -> LinkModel:
        """The one that collectives wait for."""
        link = self.network if self.num_nodes > 1 else self.node_link
        assert link is not None
        return link

    def network_share(self) -> float:
        """NICs of a node that this group has to itself, the others being used by the groups of the other GPUs."""
        assert self.network is not None
        nics = self.gpus_per_node if self.network.nics_per_node == "per_gpu" else self.network.nics_per_node
        return nics * self.ranks_per_node / self.gpus_per_node


def group_topology(ranks: Sequence[int], *, gpus_per_node: int, node_link: LinkModel | None, network: LinkModel | None) -> GroupTopology:
    """Of a group's global ranks, which fill nodes in order."""
    return GroupTopology(
        num_ranks=len(ranks),
        num_nodes=len({rank // gpus_per_node for rank in ranks}),
        gpus_per_node=gpus_per_node,
        node_link=node_link,
        network=network,
    )


def collective_time(operation: str, num_bytes: float, topology: GroupTopology, *, dtype: str = "") -> CollectiveTime:
    """Seconds of one collective of the group.

    Args:
        operation: one of OPERATIONS.
        dtype: "float16", "bfloat16" or "" for any; measured separately where summing halves is slow.
    """
    if topology.num_ranks < 2:
        return CollectiveTime(latency_s=0.0, transfer_s=0.0, demand=1.0)
    link = topology.network if operation == "network_point_to_point" else topology.link
    if operation == "point_to_point":
        link = topology.node_link
    if link is None:
        raise ValueError(f"{operation}: the topology has no such link")
    time = _modelled(operation, num_bytes, topology)
    factor = _measured_over_modelled(operation, dtype, num_bytes, link)
    latency_s, transfer_s, demand = time.latency_s * factor, time.transfer_s * factor, time.demand / factor
    if demand > 1:  # a part of what was measured as latency is passed while the link moves bytes, which it does no faster than it can
        transfer_s, total_s, demand = transfer_s * demand, latency_s + transfer_s, 1.0
        latency_s = max(0.0, total_s - transfer_s)
        transfer_s = total_s - latency_s
    host = link.host_cost.get(f"{operation}/{dtype}") or link.host_cost.get(operation)
    host_cpu_s = host.per_call_s + host.per_byte_s * num_bytes if host is not None else 0.0
    return CollectiveTime(latency_s=latency_s, transfer_s=transfer_s, demand=demand, host_cpu_s=host_cpu_s)


def _measured_over_modelled(operation: str, dtype: str, num_bytes: float, link: LinkModel) -> float:
    """1 where nothing was measured. At the number of ranks it was measured with, the measurement comes out; at others, its deviation."""
    if link.measured is None:
        return 1.0
    name = operation.removeprefix("network_")
    curve = link.measured.seconds.get(f"{name}/{dtype}") or link.measured.seconds.get(name)
    if curve is None:
        return 1.0
    num_ranks, ranks_per_node = link.measured.num_ranks, link.measured.ranks_per_node
    as_measured = GroupTopology(
        num_ranks=num_ranks,
        num_nodes=num_ranks // ranks_per_node,
        gpus_per_node=ranks_per_node,
        node_link=link if link.level == "node" else None,
        network=link if link.level == "network" else None,
    )
    ratios = [(size, seconds / _modelled(operation, size, as_measured).total_s) for size, seconds in curve]
    return interpolate(ratios, num_bytes)


def _modelled(operation: str, num_bytes: float, topology: GroupTopology) -> CollectiveTime:
    if operation == "all_reduce":
        return _all_reduce(num_bytes, topology)
    if operation in ("reduce_scatter", "all_gather"):
        return _ring(num_bytes, topology, passes=1)
    if operation in ("broadcast", "reduce"):
        return _chain(num_bytes, topology)
    if operation == "all_to_all":
        return _all_to_all(num_bytes, topology)
    if operation in ("gather", "scatter"):
        return _star(num_bytes, topology)
    if operation == "point_to_point":
        return _message(num_bytes, topology.node_link)
    if operation == "network_point_to_point":
        return _message(num_bytes, topology.network)
    raise ValueError(f"operation {operation!r} is none of {', '.join(OPERATIONS)}")


def _all_reduce(num_bytes: float, topology: GroupTopology) -> CollectiveTime:
    choices = {"ring": _ring(num_bytes, topology, passes=2), "tree": _tree(num_bytes, topology)}
    if topology.num_nodes > 1 and topology.ranks_per_node > 1:
        choices["two_level"] = _two_level(num_bytes, topology)
    algorithm = topology.link.algorithm
    if algorithm in choices:
        return choices[algorithm]
    return min(choices.values(), key=lambda time: time.total_s)


def _ring(num_bytes: float, topology: GroupTopology, *, passes: int) -> CollectiveTime:
    """2 passes for an all-reduce, 1 for a reduce-scatter or an all-gather; a pass takes n - 1 steps, m of them between nodes."""
    n, m = topology.num_ranks, topology.num_nodes
    latency_us = topology.link.base_latency_us
    network_steps = min(m, n - 1) if m > 1 else 0
    for steps, link in ((network_steps, topology.network), (n - 1 - network_steps, topology.node_link)):
        if steps > 0:
            assert link is not None
            latency_us += passes * steps * link.hop_latency_us.ring
    bytes_per_s, demand = _bandwidth(num_bytes, topology)
    return CollectiveTime(latency_s=latency_us * _US, transfer_s=passes * (n - 1) / n * num_bytes / bytes_per_s, demand=demand)


def _tree(num_bytes: float, topology: GroupTopology) -> CollectiveTime:
    n, m = topology.num_ranks, topology.num_nodes
    latency_us = topology.link.base_latency_us
    for width, link in ((m, topology.network), (n / m, topology.node_link)):
        if width > 1:
            assert link is not None
            latency_us += 2 * math.ceil(math.log2(width)) * link.hop_latency_us.tree
    bytes_per_s, demand = _bandwidth(num_bytes, topology)
    return CollectiveTime(latency_s=latency_us * _US, transfer_s=2 * (n - 1) / n * num_bytes / bytes_per_s, demand=demand)


def _two_level(num_bytes: float, topology: GroupTopology) -> CollectiveTime:
    node, network = topology.node_link, topology.network
    assert node is not None
    assert network is not None
    l, m = topology.ranks_per_node, topology.num_nodes  # noqa: E741
    latency_us = 2 * node.base_latency_us + 2 * (l - 1) * node.hop_latency_us.ring
    latency_us += network.base_latency_us + 2 * math.ceil(math.log2(m)) * network.hop_latency_us.tree
    inside_s = 2 * (l - 1) / l * num_bytes / (node.busbw_gb_s * _GB * node.efficiency_at(num_bytes))
    share = network.efficiency_at(num_bytes, nics=topology.network_share())
    between_s = 2 * (m - 1) / m * num_bytes / (network.busbw_gb_s * _GB * topology.network_share() * share)
    busy = between_s / (inside_s + between_s)
    return CollectiveTime(latency_s=latency_us * _US, transfer_s=inside_s + between_s, demand=busy * _demand(share, network))


def _chain(num_bytes: float, topology: GroupTopology) -> CollectiveTime:
    """A pipeline through all ranks: every byte passes each link once."""
    ring = _ring(num_bytes, topology, passes=1)
    bytes_per_s, demand = _bandwidth(num_bytes, topology)
    return CollectiveTime(latency_s=ring.latency_s, transfer_s=num_bytes / bytes_per_s, demand=demand)


def _all_to_all(num_bytes: float, topology: GroupTopology) -> CollectiveTime:
    n, l = topology.num_ranks, topology.ranks_per_node  # noqa: E741
    transfers = []
    if l > 1:
        assert topology.node_link is not None
        node = topology.node_link
        transfers.append((l - 1) / n * num_bytes / (node.busbw_gb_s * _GB * node.efficiency_at(num_bytes)))
    if topology.num_nodes > 1:
        assert topology.network is not None
        network = topology.network
        bytes_per_s = (
            network.busbw_gb_s * _GB * topology.network_share() / l * network.efficiency_at(num_bytes, nics=topology.network_share())
        )
        transfers.append((n - l) / n * num_bytes / bytes_per_s)
    link = topology.link
    latency_us = link.base_latency_us + link.hop_latency_us.ring
    _, demand = _bandwidth(num_bytes, topology)
    return CollectiveTime(latency_s=latency_us * _US, transfer_s=max(transfers), demand=demand)


def _star(num_bytes: float, topology: GroupTopology) -> CollectiveTime:
    """All through the root's link."""
    bytes_per_s, demand = _bandwidth(num_bytes, topology)
    link, n = topology.link, topology.num_ranks
    latency_us = link.base_latency_us + link.hop_latency_us.ring
    return CollectiveTime(latency_s=latency_us * _US, transfer_s=(n - 1) / n * num_bytes / bytes_per_s, demand=demand)


def _message(num_bytes: float, link: LinkModel | None) -> CollectiveTime:
    assert link is not None
    share = link.efficiency_at(num_bytes)
    latency_us = link.base_latency_us + link.hop_latency_us.ring
    return CollectiveTime(latency_s=latency_us * _US, transfer_s=num_bytes / (link.busbw_gb_s * _GB * share), demand=_demand(share, link))


def _bandwidth(num_bytes: float, topology: GroupTopology) -> tuple[float, float]:
    """(bytes per second of the slowest link on the ring, share of its capacity)."""
    link = topology.link
    nics = topology.network_share() if topology.num_nodes > 1 else 1
    share = link.efficiency_at(num_bytes, nics=nics)
    busbw_gb_s = link.busbw_gb_s * nics
    if topology.num_nodes > 1 and topology.node_link is not None and topology.ranks_per_node > 1:
        busbw_gb_s = min(busbw_gb_s, topology.node_link.busbw_gb_s)
    return busbw_gb_s * _GB * share, _demand(share, link)


def _demand(share: float, link: LinkModel) -> float:
    """Share of the link's capacity that a collective uses at this share of its bus bandwidth; above 1 where latency hides some."""
    return share * link.busbw_gb_s / (link.capacity_gb_s or link.busbw_gb_s)
