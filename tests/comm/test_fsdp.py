"""The FSDP2 hook on 2 replicas x 2 shards, held to native HSDP and to the exact mean of what the replicas have by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.comm import fsdp_scenarios as scenarios
from tests.comm.hook_table import UNIT
from tests.ranks import run_ranks

REPLICAS = 2
BF16_WEIGHTS = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}


@pytest.mark.parametrize(("wire", "policy", "accumulate"), [("fp16", {}, False), ("bf16", {}, True), ("fp16", BF16_WEIGHTS, True)])
def test_average_is_that_of_native_hsdp_within_two_roundings(wire: str, policy: dict[str, torch.dtype], accumulate: bool) -> None:
    ranks = run_ranks(scenarios.averages, 4, "cpu", wire, policy, accumulate)
    assert_averaged(ranks, wire)
    for result in ranks:
        assert result["hook wire"] == [({"fp16": "c10::Half", "bf16": "c10::BFloat16"}[wire], numel) for numel in scenarios.SHARDS]
        assert result["native wire"] == [("float", numel) for numel in scenarios.SHARDS]
        assert result["replica wire"] == []


def assert_averaged(ranks: list[dict[str, Any]], wire: str) -> None:
    """Ranks r and r + 2 hold the same shard. W = 2 contributions are rounded once each and their sum once: by W u times their mean
    magnitude at most, FP16's subnormal numbers by 2^-25 each. FP32's own rounding, here and in native HSDP: that of a few sums."""
    for rank, result in enumerate(ranks):
        assert not all(map(torch.equal, result["hook"], result["native"]))  # it was rounded
        other = ranks[(rank + 2) % 4]
        for index, got in enumerate(result["hook"]):
            assert torch.equal(got, other["hook"][index])
            replicas = torch.stack([result["replica"][index], other["replica"][index]]).double()
            exact, size = replicas.mean(0), replicas.abs().mean(0)
            fp32 = 4 * 2.0**-24 * size
            assert ((result["native"][index].double() - exact).abs() <= fp32).all()
            assert ((got.double() - exact).abs() <= REPLICAS * (UNIT[wire] * size + 2.0**-25) + fp32).all()


def test_reduction_in_bf16_is_left_alone() -> None:
    policy = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.bfloat16}
    for result in run_ranks(scenarios.averages, 4, "cpu", "fp16", policy, False):
        assert result["hook wire"] == [("c10::BFloat16", numel) for numel in scenarios.SHARDS]
        for got, native in zip(result["hook"], result["native"], strict=True):
            assert torch.equal(got, native)


def test_scaled_before_narrowed() -> None:
    for arrived in run_ranks(scenarios.extremes, 4, "cpu"):
        assert set(arrived["fp16"][0].flatten().tolist()) == {49984.0}  # 5e4 to the nearest multiple of 32
        assert set(arrived["bf16"][0].flatten().tolist()) == {49920.0}  # of 256


def test_replicas_train_alike() -> None:
    first, *others = run_ranks(scenarios.training, 4, "cpu")
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a, b)


def test_refusals() -> None:
    run_ranks(scenarios.refusals, 4, "cpu")


@pytest.mark.gpu
@pytest.mark.nccl
def test_over_nccl() -> None:
    assert_averaged(run_ranks(scenarios.averages, 4, "cuda", "fp16", {}, False, backend="nccl"), "fp16")
    assert_averaged(run_ranks(scenarios.averages, 4, "cuda", "bf16", BF16_WEIGHTS, True, backend="nccl"), "bf16")
