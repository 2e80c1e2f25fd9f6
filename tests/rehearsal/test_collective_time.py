"""The equations, with figures that can be reckoned by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from gpualloc.rehearsal.collective_time import OPERATIONS, GroupTopology, collective_time, group_topology
from gpualloc.rehearsal.cost_tables import cost_tables
from gpualloc.rehearsal.link_model import LinkModel, load_link
from tests.rehearsal.clusters import make_link

MB = 1e6
HOPS = {"ring": 2.0, "tree": 3.0}


def make_topology(num_ranks: int, *, gpus_per_node: int, **fields: Any) -> GroupTopology:
    """Nodes over a link of 10 GB/s, networks of 1 GB/s a NIC; 5 us a collective, HOPS a hop."""
    latencies = {"base_latency_us": 5.0, "hop_latency_us": HOPS}
    node = make_link(busbw_gb_s=10.0, **latencies)
    network = make_link(level="network", **{"nics_per_node": 1, **latencies, **fields})
    return group_topology(range(num_ranks), gpus_per_node=gpus_per_node, node_link=node, network=network)


def test_a_ring_inside_a_node_is_latency_and_bytes() -> None:
    topology = make_topology(4, gpus_per_node=8)
    time = collective_time("all_reduce", 100 * MB, topology)
    assert time.transfer_s == pytest.approx(2 * 3 / 4 * 100e6 / 10e9)
    assert time.latency_s == pytest.approx(min(5 + 6 * 2, 5 + 4 * 3) * 1e-6)
    half = collective_time("reduce_scatter", 100 * MB, topology)
    assert half.transfer_s == pytest.approx(time.transfer_s / 2)
    assert collective_time("broadcast", 100 * MB, topology).transfer_s == pytest.approx(100e6 / 10e9)


def test_many_small_messages_go_by_tree() -> None:
    time = collective_time("all_reduce", 8, make_topology(64, gpus_per_node=64))
    assert time.latency_s == pytest.approx((5 + 2 * 6 * 3) * 1e-6)


def test_nodes_of_one_nic_share_it() -> None:
    """8 nodes of 8: every byte of the ring passes a node's one NIC of 1 GB/s; groups of one GPU a node have an eighth of it."""
    whole = collective_time("all_reduce", 800 * MB, make_topology(64, gpus_per_node=8))
    assert whole.total_s == pytest.approx(2 * 63 / 64 * 0.8, rel=0.2)
    column = group_topology(
        range(0, 64, 8), gpus_per_node=8, node_link=make_link(busbw_gb_s=10.0), network=make_link(level="network", nics_per_node=1)
    )
    assert (column.num_nodes, column.ranks_per_node) == (8, 1)
    assert collective_time("all_reduce", 100 * MB, column).transfer_s == pytest.approx(2 * 7 / 8 * 0.1 * 8)


def test_a_nic_for_each_gpu_carries_more() -> None:
    one, eight = (
        collective_time("all_reduce", 800 * MB, make_topology(64, gpus_per_node=8, nics_per_node=nics)).total_s for nics in (1, "per_gpu")
    )
    assert 4 < one / eight <= 8


def test_a_measurement_comes_out_as_it_was_measured() -> None:
    curve = [(1024.0, 300e-6), (2.0**20, 11e-3), (2.0**24, 150e-3)]
    measured = {"num_ranks": 2, "ranks_per_node": 2, "seconds": {"all_reduce": curve, "all_reduce/float16": [(2.0**20, 20e-3)]}}
    link = make_link(measured=measured, capacity_gb_s=0.12)
    topology = group_topology([0, 1], gpus_per_node=2, node_link=link, network=None)
    for size, seconds in curve:
        time = collective_time("all_reduce", size, topology)
        assert time.total_s == pytest.approx(seconds)
        assert time.demand <= 1
        assert time.transfer_s >= min(seconds, size / 0.12e9) * 0.99, "bytes cannot pass faster than the link's capacity"
    assert collective_time("all_reduce", 2.0**20, topology, dtype="float16").total_s == pytest.approx(20e-3)
    assert set(cost_tables(topology)) >= {"all_reduce", "all_reduce/float16"}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("num_ranks", [2, 8, 64])
def test_more_bytes_never_take_less_time(operation: str, num_ranks: int) -> None:
    topology = group_topology(range(num_ranks), gpus_per_node=8, node_link=load_link("nvlink4"), network=load_link("ib_ndr"))
    if operation == "network_point_to_point" and topology.network is None:
        pytest.skip("one node")
    times = [collective_time(operation, 2.0**exponent, topology).total_s for exponent in range(2, 36)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(times))


def test_one_rank_has_nothing_to_say() -> None:
    link: LinkModel = make_link()
    topology = group_topology([3], gpus_per_node=8, node_link=link, network=None)
    assert collective_time("all_reduce", 1e9, topology).total_s == 0
