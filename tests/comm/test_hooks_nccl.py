"""The hooks on 2 NCCL ranks sharing one GPU: many scenarios in one process group, since starting one takes seconds.

Training is apart, because cuDNN finds no kernel that it could run under compute-sanitizer's racecheck, which has the other test to check.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.comm import scenarios
from tests.comm.test_clipping import assert_norms_equal_torchs
from tests.comm.test_hooks import assert_ranks_equal, error_bounds
from tests.ranks import run_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.nccl]

OPTIONS: list[tuple[dict[str, bool], dict[str, bool]]] = [
    ({}, {}),
    ({"gradient_as_bucket_view": True}, {}),
    ({"gradient_as_bucket_view": True, "static_graph": True}, {}),
    ({"find_unused_parameters": True, "gradient_as_bucket_view": True}, {"use_all": False}),
    ({"gradient_as_bucket_view": True}, {"accumulate": True}),
]


def _gradients(rank: int, world_size: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for index, (options, kwargs) in enumerate(OPTIONS):
        for hook in ("stock", "fp32", "fp16", "bf16", "torch_fp16", "fp16_callable", "bf16_callable"):
            results[f"{hook} {index}"] = scenarios.known_gradients(rank, world_size, "cuda", hook, options, **kwargs)  # type: ignore[arg-type]
    for wire, sum_squares in (("fp16", True), ("fp16", False), ("bf16", True), ("fp32", False)):
        results[f"norms {wire} {sum_squares}"] = scenarios.norms(rank, world_size, "cuda", wire, sum_squares)
    results["scaler"] = scenarios.scaler_skips_overflow(rank, world_size, "cuda")
    results["long_run"] = scenarios.long_run(rank, world_size, "cuda")
    for dtype in (torch.float64, torch.complex64, torch.bfloat16):
        for hook in ("stock", "fp16"):
            results[f"{hook} {dtype}"] = scenarios.other_dtypes(rank, world_size, "cuda", hook, dtype)
    return results


@pytest.mark.timeout(500)
def test_gradients_and_their_norms() -> None:
    first, second = run_ranks(_gradients, 2, backend="nccl", timeout_s=400)
    for index, (_, kwargs) in enumerate(OPTIONS):
        factor = 2 if kwargs.get("accumulate") else 1
        for step in range(3):
            exact = scenarios.exact_mean(2, step)
            for wire in ("fp16", "bf16"):
                gradients = first[f"{wire} {index}"][0][step]
                assert_ranks_equal([gradients, second[f"{wire} {index}"][0][step]])
                assert_ranks_equal([gradients, first[f"{wire}_callable {index}"][0][step]])
                for got, want, bound in zip(gradients, exact, error_bounds(2, step, wire), strict=True):
                    assert ((got.double() - factor * want).abs() <= factor * bound).all()
                    assert not torch.equal(got, (factor * want).float())
            assert_ranks_equal([first[f"fp32 {index}"][0][step], first[f"stock {index}"][0][step]])
            for a, b, bound in zip(
                first[f"fp16 {index}"][0][step], first[f"torch_fp16 {index}"][0][step], error_bounds(2, step, "fp16"), strict=True
            ):
                assert ((a - b).double().abs() <= 2 * factor * bound).all()
        narrow, wide = first[f"fp16 {index}"][1], first[f"fp32 {index}"][1]
        assert 2 * narrow["wire_bytes"] == wide["wire_bytes"] > 0
    for name in (name for name in first if name.startswith("norms")):
        assert_norms_equal_torchs([first[name], second[name]])
    for result in (first, second):
        assert result["scaler"]["nonfinite_steps"] == 1
        assert torch.equal(result["scaler"]["weights"][1], result["scaler"]["weights"][0])
        assert result["long_run"]["saved"]["nonfinite_steps"] == 29
        assert result["long_run"]["resumed"] == result["long_run"]["saved"]
    for dtype in (torch.float64, torch.complex64, torch.bfloat16):
        assert_ranks_equal([first[f"stock {dtype}"], first[f"fp16 {dtype}"], second[f"fp16 {dtype}"]])


def _training(rank: int, world_size: int) -> dict[str, Any]:
    return {hook: scenarios.train(rank, world_size, "cuda", hook) for hook in ("stock", "fp16", "bf16")}


@pytest.mark.timeout(500)
def test_training_ends_near_ddps_own() -> None:
    first, second = run_ranks(_training, 2, backend="nccl", timeout_s=400)
    for hook in ("fp16", "bf16"):
        assert_ranks_equal([first[hook], second[hook]])
        for a, b in zip(first["stock"], first[hook], strict=True):
            assert (a - b).norm() <= 0.02 * a.norm() + 1e-3
