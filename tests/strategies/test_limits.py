"""Who reads what, and what is refused before it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpualloc.strategies import STRATEGIES, data_of, data_ranks, num_processes, unsupported_reason
from gpualloc.strategies.layout import num_microbatches
from gpualloc.workloads import MODELS
from tests.bench.cases import tiny_case
from tests.strategies.training import gpt_case


@pytest.mark.parametrize(
    ("strategy", "ranks_that_read_alike", "processes"),
    [
        ("data_parallel", None, 1),
        ("ddp", [0, 1, 2, 3], 4),
        ("ddp_full_data", [0, 0, 0, 0], 4),
        ("fsdp", [0, 1, 2, 3], 4),
        ("hsdp", [0, 1, 2, 3], 4),
        ("tensor_parallel", [0, 0, 0, 0], 4),
        ("pipeline", [0, 0, 0, 0], 4),
        ("pipeline_ddp", [0, 0, 1, 1], 4),
    ],
)
def test_who_reads_what(strategy: str, ranks_that_read_alike: list[int] | None, processes: int) -> None:
    case = gpt_case(strategy=strategy, world_size=4)
    assert num_processes(case) == processes
    if ranks_that_read_alike is None:  # one process reads for all
        data_case, data_rank = data_of(case, 0)
        assert (data_case.world_size, data_case.per_device_batch_size, data_rank) == (1, 4 * case.per_device_batch_size, 0)
        assert data_ranks(case) == 4
        return
    assert [data_of(case, rank)[1] for rank in range(4)] == ranks_that_read_alike
    assert {data_of(case, rank)[0].world_size for rank in range(4)} == {data_ranks(case)} == {len(set(ranks_that_read_alike))}


def test_a_strategy_is_refused_with_its_reason_or_runs() -> None:
    on_cpu = {strategy: unsupported_reason(gpt_case(strategy=strategy, world_size=4), num_gpus=0) for strategy in STRATEGIES}
    assert [strategy for strategy, reason in on_cpu.items() if reason is not None] == ["data_parallel", "tensor_parallel"]
    assert on_cpu["tensor_parallel"] == "gpt_small has 6 attention heads, which 4 ranks cannot share equally"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (gpt_case(strategy="data_parallel", device="cuda", world_size=4, ranks_per_gpu=2), "it cannot share one"),
        (gpt_case(strategy="data_parallel", device="cuda", world_size=4), "here are 2"),
        (gpt_case(strategy="data_parallel", device="cuda", world_size=2), None),
        (gpt_case(strategy="fsdp", hook="torch_fp16"), "hooks are for ddp"),
        (gpt_case(strategy="ddp_full_data", hook="gpualloc_auto"), "hooks are for ddp"),
        (tiny_case(strategy="fsdp", channels_last=True), "contiguous"),
        (tiny_case(strategy="hsdp", channels_last=True, world_size=4), "contiguous"),
        (gpt_case(strategy="hsdp", world_size=2), "2 copies of a model over 2 ranks or more each, and 2 ranks are not that"),
        (gpt_case(strategy="pipeline_ddp", world_size=6, per_device_batch_size=3), None),
        (gpt_case(strategy="pipeline_ddp", world_size=5), "5 ranks are not that"),
        (tiny_case(strategy="tensor_parallel"), "no tensor-parallel plan for mobilenet_v2"),
        (gpt_case(strategy="tensor_parallel", tuning="lora"), "not for tuning lora"),
        (gpt_case(strategy="tensor_parallel", world_size=1), "two ranks or more"),
        (gpt_case(strategy="pipeline", world_size=1), "two stages or more"),
        (gpt_case(strategy="pipeline", world_size=9, per_device_batch_size=9), "can be cut into 8 parts and the pipeline has 9 stages"),
        (gpt_case(strategy="pipeline", per_device_batch_size=3), "use a multiple of 2"),
        (tiny_case(strategy="pipeline", per_device_batch_size=2), "use a multiple of 4"),
        (gpt_case(strategy="pipeline", grad_accum_steps=2), "accumulation already"),
        (gpt_case(hook="torch_powersgd", precision="fp16"), "never forgets an inf"),
        (gpt_case(hook="torch_powersgd", precision="fp64"), None),
        (gpt_case(hook="torch_bf16"), "without NCCL"),
        (gpt_case(hook="gpualloc_fp16", precision="fp64"), "unchanged"),
    ],
)
def test_what_cannot_run(case: Any, reason: str | None) -> None:
    found = unsupported_reason(case, num_gpus=2 if case.device == "cuda" else 0)
    assert found is None if reason is None else reason in str(found)


def test_micro_batches_are_equal_and_images_come_in_pairs_at_least() -> None:
    assert [num_microbatches(gpt_case(strategy="pipeline", per_device_batch_size=size)) for size in (1, 2, 4, 6, 8, 16)] == [
        None, 2, 4, 2, 8, 8
    ]  # fmt: skip
    assert [num_microbatches(tiny_case(strategy="pipeline", per_device_batch_size=size)) for size in (2, 4, 8, 16)] == [None, 2, 4, 8]


def test_the_number_of_parts_is_known_without_building_the_model() -> None:
    """Each model at the deepest pipeline it allows, and at one stage more."""
    from gpualloc.workloads import build_model

    for name, spec in MODELS.items():
        make_case = gpt_case if spec.workload == "llm" else tiny_case
        model = build_model(make_case(model=name), device=torch.device("meta"))
        num_parts = len(model.parts()) if hasattr(model, "parts") else 0  # type: ignore[operator]
        if num_parts == 0:
            reason = unsupported_reason(make_case(model=name, strategy="pipeline", world_size=2), num_gpus=0)
            assert reason == f"there is no way to cut {name} into stages"
            continue
        for world_size, fits in ((num_parts, True), (num_parts + 1, False)):
            case = make_case(model=name, strategy="pipeline", world_size=world_size, per_device_batch_size=2 * world_size)
            assert (unsupported_reason(case, num_gpus=0) is None) == fits, name
