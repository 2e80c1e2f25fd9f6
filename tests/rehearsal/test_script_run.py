"""What rehearsed sizes say together."""

from __future__ import annotations

import pytest

from gpualloc.rehearsal.script_run import RehearsedSize, Scaling, speedups, unequal_compute_s
from gpualloc.rehearsal.step_timer import TimedSteps


def size(num_gpus: int, step_ms: float, compute_ms: float) -> RehearsedSize:
    steps = TimedSteps(
        device="made up",
        num_steps=20,
        step_time_s=step_ms / 1e3,
        step_time_low_s=step_ms / 1e3,
        step_time_high_s=step_ms / 1e3,
        compute_time_s=compute_ms / 1e3,
        comm_time_s=0.0,
        comm_bytes=0.0,
        num_collectives=1.0,
        peak_memory_bytes=1,
    )
    return RehearsedSize(num_gpus=num_gpus, steps=steps)


FAILED = RehearsedSize(num_gpus=4, steps=None, failure="out of memory")


def test_speedups_leave_out_what_failed() -> None:
    sizes = [size(1, 10, 10), FAILED, size(2, 12.5, 10)]
    assert speedups(sizes, "weak") == [1.0, None, pytest.approx(1.6)]
    assert speedups([size(1, 10, 10), size(2, 6.25, 5)], "strong") == [1.0, pytest.approx(1.6)]


@pytest.mark.parametrize(
    ("sizes", "scaling", "expected"),
    [
        ([size(1, 2.5, 2.5), size(2, 4.3, 3.7), FAILED, size(8, 3.1, 2.8)], "weak", (2.8e-3, 3.7e-3)),
        ([size(1, 2.5, 2.5), size(2, 4.3, 3.0), size(8, 3.1, 2.8)], "weak", None),  # one GPU has no DDP
        ([size(2, 4.3, 4.0), size(4, 2.3, 2.0)], "strong", None),  # half the work
        ([FAILED], "weak", None),
    ],
)
def test_steps_that_should_compute_alike(sizes: list[RehearsedSize], scaling: Scaling, expected: tuple[float, float] | None) -> None:
    assert unequal_compute_s(sizes, scaling) == (None if expected is None else pytest.approx(expected))
