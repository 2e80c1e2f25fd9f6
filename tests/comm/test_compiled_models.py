"""torch.compile and the hooks: the same gradients, and buckets that still leave while the backward pass goes on."""

from __future__ import annotations

import pytest

from tests.comm import compile_scenarios as scenarios
from tests.comm.test_torch_list import PerHook, per_hook
from tests.ranks import run_ranks

AT_ONCE = [0] * scenarios.LAYERS
ONE_BY_ONE = list(range(scenarios.LAYERS))
SOME = ("fp16", "fp16_callable", "fp16_python")


def test_compiled_inside_ddp_buckets_leave_one_by_one() -> None:
    assert_overlap(per_hook(scenarios.compiled, "inside", True), overlaps=True)


@pytest.mark.parametrize("where", ["nowhere", "outside"])
def test_buckets_leave_one_by_one(where: str) -> None:
    assert_overlap(per_hook(scenarios.compiled, where, True, hooks=SOME), overlaps=True)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_without_ddp_optimizer_overlap_is_lost_and_registration_warns(where: str) -> None:
    assert_overlap(per_hook(scenarios.compiled, where, False, hooks=SOME), overlaps=False)


def assert_overlap(results: PerHook, overlaps: bool) -> None:
    for hook, ranks in results.items():
        for (first, *later), warned in ranks:
            assert first == AT_ONCE, hook  # one bucket of everything, which DDP rebuilds in the second step
            assert later == [ONE_BY_ONE if overlaps else AT_ONCE] * 2, hook
            if hook == "fp16":
                assert len(warned) == (0 if overlaps else 1)
                assert overlaps or "no communication is hidden; leave optimize_ddp=True" in warned[0]


def test_a_model_for_the_python_reducer_is_refused() -> None:
    for refusal in run_ranks(scenarios.python_reducer, 2, "cpu"):
        assert "never calls a hook; wrap the model under the default, optimize_ddp=True" in refusal
