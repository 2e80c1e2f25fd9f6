"""Every strategy with NCCL ranks that share a GPU, and DataParallel on two."""

from __future__ import annotations

import pytest
import torch

from gpualloc.bench.runner import run_case
from gpualloc.records import BenchCase
from gpualloc.strategies import data_ranks
from tests.ranks import run_ranks
from tests.strategies.measuring import overflow_on_one_rank
from tests.strategies.test_training import compare_with_one_process
from tests.strategies.training import gpt_case, train, with_strategies

pytestmark = pytest.mark.gpu


@pytest.mark.nccl
@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        (2, with_strategies(gpt_case, "ddp", "ddp_full_data", "fsdp", "tensor_parallel", "pipeline", device="cuda", ranks_per_gpu=2)),
        (4, with_strategies(gpt_case, "hsdp", "pipeline_ddp", device="cuda", ranks_per_gpu=4, world_size=4)),
    ],
)
def test_every_strategy_trains_as_one_process(world_size: int, cases: dict[str, BenchCase]) -> None:
    results = run_ranks(train, world_size, cases, "cuda:0", backend="nccl")
    for label, case in cases.items():
        compare_with_one_process(case, [result[label] for result in results], device_type="cuda")


@pytest.mark.nccl
def test_a_step_that_overflows_on_one_rank_is_skipped_by_all() -> None:
    cases = [gpt_case(strategy=strategy, precision="fp16", device="cuda") for strategy in ("fsdp", "tensor_parallel", "pipeline")]
    for outcomes in run_ranks(overflow_on_one_rank, 2, cases, "cuda:0", backend="nccl"):
        assert outcomes == [[(True, 1.0), (False, 0.5)]] * len(cases)


@pytest.mark.nccl
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("strategy", "hook", "world_size"),
    [
        ("ddp", "torch_powersgd", 2),
        ("ddp_full_data", "none", 2),
        ("fsdp", "none", 2),
        ("hsdp", "none", 4),
        ("tensor_parallel", "none", 2),
        ("pipeline", "none", 2),
        ("pipeline_ddp", "none", 4),
    ],
)
def test_a_case_is_measured(strategy: str, hook: str, world_size: int, precision: str) -> None:
    """With the process group as the benchmark makes it, bound to a device, whose parts are split from it."""
    sharing = {"device": "cuda", "world_size": world_size, "ranks_per_gpu": world_size}
    case = gpt_case(strategy=strategy, hook=hook, precision=precision, num_warmup_steps=4, sequence_length=32, **sharing)
    measured = run_case(case)
    assert (measured.status, measured.reason) == ("ok", None)
    assert measured.step_time_s is not None
    assert measured.samples_per_s == pytest.approx(data_ranks(case) * case.per_device_batch_size / measured.step_time_s)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_data_parallel_trains_as_one_process() -> None:
    case = gpt_case(strategy="data_parallel", device="cuda")
    one = gpt_case(strategy="single", device="cuda", world_size=1, per_device_batch_size=2 * case.per_device_batch_size)
    outcome = train(0, 1, {"both": case}, "cuda:0")["both"]
    compare_with_one_process(one, [outcome], device_type="cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_data_parallel_is_measured(precision: str) -> None:
    case = gpt_case(strategy="data_parallel", device="cuda", precision=precision)
    measured = run_case(case)
    assert (measured.status, measured.reason) == ("ok", None)
    assert measured.step_time_s is not None
    assert measured.samples_per_s == pytest.approx(2 * case.per_device_batch_size / measured.step_time_s)
    assert measured.compute_time_s is None
