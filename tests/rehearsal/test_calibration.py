"""What measured collectives say about a link."""

from __future__ import annotations

import pytest

from gpualloc.rehearsal.calibration import fit_all_reduces
from gpualloc.rehearsal.collective_time import GroupTopology, collective_time
from tests.rehearsal.clusters import make_link

# Microseconds of all-reduces and messages of 1 KiB, four times as much and so on up to 256 MiB: two H100 with NVLink, 2026-11-27.
ALL_REDUCE_US = [89, 90, 93, 137, 78, 83, 82, 114, 281, 972]
MESSAGE_US = [89, 86, 89, 139, 166, 172, 189, 180, 325, 1043]


def curve(times_us: list[float]) -> list[tuple[float, float]]:
    return [(1024.0 * 4**index, time_us * 1e-6) for index, time_us in enumerate(times_us)]


def all_reduce_s(num_bytes: float, num_ranks: int = 2, **measured: list[float]) -> float:
    link = make_link(**fit_all_reduces({name: curve(times) for name, times in measured.items()}, 2))
    topology = GroupTopology(num_ranks=num_ranks, num_nodes=1, gpus_per_node=num_ranks, node_link=link, network=None)
    return collective_time("all_reduce", num_bytes, topology).total_s


def test_small_ones_that_take_longer_than_larger_ones_do_not_make_the_link_faster() -> None:
    measured = {"all_reduce": ALL_REDUCE_US, "point_to_point": MESSAGE_US}
    for size, time_s in curve(ALL_REDUCE_US)[-3:]:
        assert all_reduce_s(size, **measured) == pytest.approx(time_s, rel=0.2)
    assert all_reduce_s(2**30, **measured) == pytest.approx(4 * 972e-6, rel=0.1)
    busbw_gb_s = fit_all_reduces({name: curve(times) for name, times in measured.items()}, 2)["busbw_gb_s"]
    assert 2**28 / 972e-6 / 1e9 < busbw_gb_s < 345  # more than with the latency, no more than several at a time reached


def test_latency_and_rate_come_out_as_they_were_made() -> None:
    """20 us and 8 us a step; 2 GB/s of bus bandwidth."""
    sizes = [size for size, _ in curve([0.0] * 10)]
    measured = {"all_reduce": [20 + 2 * 8 + size / 2e3 for size in sizes], "point_to_point": [20 + 8 + size / 2e3 for size in sizes]}
    assert all_reduce_s(2**30, **measured) == pytest.approx(36e-6 + 2**30 / 2e9, rel=0.01)
    assert all_reduce_s(2**30, num_ranks=4, **measured) == pytest.approx(68e-6 + 1.5 * 2**30 / 2e9, rel=0.01)
    assert all_reduce_s(1, num_ranks=4, **measured) == pytest.approx(52e-6, rel=0.05)  # by tree, of four steps


def test_a_link_whose_time_is_all_latency_has_a_rate() -> None:
    assert all_reduce_s(2**28, all_reduce=[50.0] * 10, point_to_point=[50.0] * 10) == pytest.approx(100e-6, rel=0.1)
