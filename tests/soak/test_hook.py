"""10,000 DDP steps with late ranks, inf and NaN, accumulation and rebuilt buckets: ranks agree to the bit, memory stays flat."""

from __future__ import annotations

import statistics

import pytest

from tests.ranks import run_ranks
from tests.soak import faulty_steps

WIRES = ("auto", "fp32", "fp16", "bf16", "int8", "fp16+error_feedback")
GROWTH_BYTES = 8 * 2**20  # less than a byte for each of the 10,000 steps' smallest buffers


def run(wire: str, world_size: int, num_steps: int) -> list[faulty_steps.Seen]:
    ranks = run_ranks(faulty_steps.train, world_size, wire, num_steps, 7, timeout_s=900)
    first = ranks[0]
    assert len(first.weights) == num_steps // faulty_steps.LOOK_EVERY
    assert len(set(first.weights)) == len(first.weights)  # it goes on training
    spoilt = {step for rank in ranks for step in rank.spoilt}
    for rank in ranks:
        assert rank.weights == first.weights
        assert rank.skipped == first.skipped
        assert rank.wire_scale == first.wire_scale
        assert rank.steps_counted == num_steps
    assert spoilt <= set(first.skipped)
    return ranks


@pytest.mark.parametrize("wire", ["auto", "fp16+error_feedback"])
def test_some_hundred_steps(wire: str) -> None:
    first, _ = run(wire, 2, 400)
    assert first.rebuilds
    assert first.accumulated
    assert first.skipped


@pytest.mark.soak
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("world_size", "wire"), [*((2, wire) for wire in WIRES), (4, "auto")])
def test_ten_thousand_steps(world_size: int, wire: str) -> None:
    ranks = run(wire, world_size, 10_000)
    assert min(ranks[0].rebuilds, len(ranks[0].skipped)) > 20
    for rank in ranks:
        early, late = (statistics.median(part) for part in (rank.rss_bytes[20:40], rank.rss_bytes[-20:]))
        assert late - early < GROWTH_BYTES, [f"{rss / 2**20:.1f}" for rss in rank.rss_bytes[::5]]
