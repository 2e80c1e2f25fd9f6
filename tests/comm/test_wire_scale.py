"""FP16's wire scale, which follows the gradients, on 2 gloo ranks: what it saves, where its room ends, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.comm import scenarios
from tests.ranks import run_ranks

CONSTANT_GRADIENTS = ((1e5, 0.0), (1e5, 1e5), (4e-8, 4e-8), (0.75, 0.25))


def assert_dynamic_scale_follows(results: dict[tuple[float, float], list[dict[str, Any]]]) -> None:
    """The table of what an FP16 wire does to extreme gradients, with its last column: a power-of-two wire scale."""
    for first, second in results.values():
        assert str(first) == str(second)  # every rank decides alike
        assert first["nonfinite_steps"] == first["saturated_steps"] == 0
        assert first["resumed"] == first["arrived"][-1]  # the first step after resuming has the scale already
    for values, (first, _) in results.items():
        # The largest of |gradient| / 2 times the scale lies between limit / 16 and limit / 8, 2**10 and 2**11, or the scale at its end.
        largest = max(values) / 2 * first["scales"][-1]
        assert 2.0**10 <= largest <= 2.0**11 or (largest < 2.0**10 and first["scales"][-1] == 2.0**24)

    # The first step in FP32; then 50000 / 32 = 1562.5, a tie that goes to 1562.
    assert results[1e5, 0.0][0]["arrived"] == [5e4, *[49984.0] * 29]
    assert results[1e5, 1e5][0]["arrived"] == [1e5, *[99968.0] * 29]
    small = results[4e-8, 4e-8][0]["arrived"]  # below half of FP16's smallest number
    assert small == pytest.approx([4e-8] * 30, rel=2.0**-10)
    assert set(results[0.75, 0.25][0]["arrived"]) == {0.5}  # a power of two changes nothing that fits


def test_dynamic_wire_scale_saves_large_and_small_gradients() -> None:
    assert_dynamic_scale_follows({values: run_ranks(_constant, 2, values) for values in CONSTANT_GRADIENTS})


def _constant(rank: int, world_size: int, values: tuple[float, float]):  # type: ignore[no-untyped-def]
    return scenarios.constant_gradients(rank, world_size, "cpu", values, steps=30)


def test_a_jump_beyond_the_scales_room_is_cut_and_counted_alike() -> None:
    # From 1 to 1e6 in one step on one rank: cut to limit / scale, never inf; the next step fits again.
    for result in run_ranks(_jump, 2):
        before, jump, after = result["arrived"][3:6]
        assert before == 1.0
        limit, scale = 2.0**15 / 2, result["scales"][3]
        assert jump == (limit / scale) + 0.5  # rank 0 cut to the limit, rank 1's half of 1
        assert after == pytest.approx((1e6 + 1) / 2, rel=2.0**-10)
        assert result["saturated_steps"] == 1
        assert result["nonfinite_steps"] == 0


def _jump(rank: int, world_size: int):  # type: ignore[no-untyped-def]
    return scenarios.jumping_gradient(rank, world_size, "cpu")


def test_dynamic_wire_scale_arguments() -> None:
    run_ranks(_refused_scales, 1)


def _refused_scales(rank: int, world_size: int) -> None:
    import gpualloc
    from gpualloc import _native
    from gpualloc.errors import NativeUnavailableError, UsageError

    ddp = scenarios.wrap(torch.nn.Linear(2, 2), "cpu")
    for wire_scale in ("static", 0.0, -1.0, float("inf")):
        with pytest.raises(UsageError, match='neither "dynamic" nor a positive number'):
            gpualloc.register_comm_hook(ddp, wire_scale=wire_scale)
    with pytest.raises(UsageError, match="allow_int8=True is for wire='auto'"):
        gpualloc.register_comm_hook(ddp, wire="fp16", allow_int8=True)
    with pytest.raises(UsageError, match="accumulate='fp16' is none of"):
        gpualloc.register_comm_hook(ddp, accumulate="fp16")
    with pytest.raises(UsageError, match="max_communicators=0 is out of range"):
        gpualloc.register_comm_hook(ddp, max_communicators=0)
    _native._load = lambda: (None, "taken away by a test")  # type: ignore[assignment]
    for options in ({"wire": "int8"}, {"allow_int8": True}, {"accumulate": "fp32"}, {"error_feedback": True}):
        with pytest.raises(NativeUnavailableError, match="taken away by a test"):
            gpualloc.register_comm_hook(ddp, **options)
