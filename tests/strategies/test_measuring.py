"""What the benchmark reports of each strategy."""

from __future__ import annotations

import pytest
import torch

from gpualloc.bench.summary import summarise
from gpualloc.strategies import data_ranks
from gpualloc.workloads.gpt import Gpt
from tests.ranks import run_ranks
from tests.strategies.measuring import TINY_GPT, measure, overflow_on_one_rank
from tests.strategies.training import gpt_case

_BYTES = {"fp64": (8, 8), "fp32": (4, 4), "bf16": (2, 4)}  # of a parameter that FSDP gathers, of a gradient
_SHARDED = ("fsdp", "tensor_parallel", "pipeline")
with torch.device("meta"):
    _MODEL = Gpt(TINY_GPT)
_NUM_PARAMETERS = sum(parameter.numel() for parameter in _MODEL.parameters())  # all first dimensions even: nothing is padded
_NUM_IN_BLOCKS = sum(parameter.numel() for parameter in _MODEL.blocks.parameters())


@pytest.mark.parametrize("world_size", [2, 4])
def test_figures_of_every_strategy(world_size: int) -> None:
    strategies = ("ddp_full_data", *_SHARDED) if world_size == 2 else ("hsdp", "pipeline_ddp")
    cases = [gpt_case(strategy=strategy, precision=precision, world_size=world_size) for strategy in strategies for precision in _BYTES]
    reports = run_ranks(measure, world_size, cases)
    for case, of_ranks in zip(cases, zip(*reports, strict=True), strict=True):
        measured = summarise(case, of_ranks, backend="gloo", environment=None)
        assert measured.step_time_s is not None
        assert measured.samples_per_s == pytest.approx(data_ranks(case) * case.per_device_batch_size / measured.step_time_s)
        assert measured.loss_end is not None
        assert 4 < measured.loss_end < 7, "near ln 256 in the first steps"
        has_compute = case.strategy == "ddp_full_data"
        assert (measured.compute_time_s is not None) == (measured.exposed_comm_s is not None) == has_compute, case.label()
        assert measured.wire_bytes_per_step == expected_wire_bytes(case.strategy, *_BYTES[case.precision]), case.label()


def expected_wire_bytes(strategy: str, forward_bytes: int, gradient_bytes: int) -> int | None:
    """FSDP gathers everything once and the blocks twice, and scatters gradients; of two replicas the shards are averaged, too."""
    gradients = _NUM_PARAMETERS * gradient_bytes
    sharded = (_NUM_PARAMETERS + _NUM_IN_BLOCKS) * forward_bytes + gradients
    return {"ddp_full_data": gradients, "fsdp": sharded, "hsdp": sharded + gradients // 2}.get(strategy)


def test_a_step_that_overflows_on_one_rank_is_skipped_by_all() -> None:
    cases = [gpt_case(strategy=strategy, precision="fp16") for strategy in _SHARDED]
    for outcomes in run_ranks(overflow_on_one_rank, 2, cases):
        assert outcomes == [[(True, 1.0), (False, 0.5)]] * len(cases)
