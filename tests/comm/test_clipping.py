"""Norm and clipping from what the hook counted, against torch's own, on 2 gloo ranks."""

from __future__ import annotations

import pytest
import torch

from tests.comm import scenarios
from tests.ranks import run_ranks


@pytest.mark.parametrize(("wire", "sum_squares"), [("fp16", True), ("fp16", False), ("bf16", True), ("fp32", True)])
@pytest.mark.parametrize("native", [True, False])
def test_norm_clipping_and_found_inf_equal_torchs(wire: str, sum_squares: bool, native: bool) -> None:
    results = run_ranks(_norms, 2, wire, sum_squares, native)
    assert_norms_equal_torchs(results)


def assert_norms_equal_torchs(results: list[dict[str, list[dict[str, torch.Tensor]]]]) -> None:
    for step, (first, second) in enumerate(zip(results[0]["steps"], results[1]["steps"], strict=True)):
        for name in ("ours", "found_inf"):
            assert torch.equal(first[name].nan_to_num(-1), second[name].nan_to_num(-1))
        assert first["found_inf"].tolist() == [float(step == 2)]
        if step == 2:
            assert not first["ours"].isfinite()
            continue
        # Two sums of 3047 squares of one sign, each within 3047 * 2**-24 of the exact one; the norm within half of that.
        torch.testing.assert_close(first["ours"].double(), first["theirs"].double(), rtol=3047 * 2.0**-24, atol=0)
        assert torch.equal(first["clipped"], first["ours"])
        assert first["theirs"] > 3
        assert first["after"].item() == pytest.approx(3.0, rel=1e-3)


def _norms(rank: int, world_size: int, wire: str, sum_squares: bool, native: bool):  # type: ignore[no-untyped-def]
    if native:
        return scenarios.norms(rank, world_size, "cpu", wire, sum_squares)
    from gpualloc import _native

    _native._load = lambda: (None, "taken away by a test")  # type: ignore[assignment]
    with pytest.warns(RuntimeWarning, match="slower Python hooks"):
        return scenarios.norms(rank, world_size, "cpu", wire, sum_squares)


def test_clipping_to_nothing_is_refused() -> None:
    run_ranks(_clip_to_nothing, 1)


def _clip_to_nothing(rank: int, world_size: int) -> None:
    import gpualloc
    from gpualloc.errors import UsageError

    handle = gpualloc.register_comm_hook(scenarios.wrap(torch.nn.Linear(2, 2), "cpu"))
    for max_norm in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="is not a positive number"):
            handle.clip_grad_norm_(max_norm)
