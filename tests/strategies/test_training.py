"""What the ranks of a strategy train is what one process trains on all their data."""

from __future__ import annotations

import statistics

import pytest

from gpualloc.records import BenchCase
from gpualloc.strategies import data_of, data_ranks
from tests.ranks import run_ranks
from tests.strategies.training import (
    LEARNING_RATE,
    NUM_STEPS,
    Outcome,
    gpt_case,
    image_case,
    llama_case,
    train,
    train_in_one_process,
    with_strategies,
)

# Sums of the same numbers in another order differ by a unit roundoff per term at most. The longest sums of a forward or backward pass
# have 256 terms (all pixels of a batch, for a filter's gradient), and a gradient comes through some 30 sums, one after the other.
_UNIT_ROUNDOFF = 2.0**-24  # fp32
_ROUNDINGS = 256 * 30


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        (
            2,
            with_strategies(gpt_case, "ddp", "ddp_full_data", "fsdp", "tensor_parallel", "pipeline")
            | with_strategies(llama_case, "fsdp", "tensor_parallel", "pipeline")
            | with_strategies(image_case, "ddp", "fsdp", "pipeline"),
        ),
        (4, with_strategies(gpt_case, "fsdp", "hsdp", "tensor_parallel", "pipeline", "pipeline_ddp", world_size=4)),
    ],
)
def test_every_strategy_trains_as_one_process(world_size: int, cases: dict[str, BenchCase]) -> None:
    results = run_ranks(train, world_size, cases)
    for label, case in cases.items():
        compare_with_one_process(case, [result[label] for result in results])


def compare_with_one_process(case: BenchCase, outcomes: list[Outcome], *, device_type: str = "cpu") -> None:
    label = f"{case.model} {case.strategy}"
    (expected_losses, expected), largest = train_in_one_process(case, device_type=device_type)
    roundoff = _ROUNDINGS * _UNIT_ROUNDOFF

    for step, expected_loss in enumerate(expected_losses):
        of_data_rank = {data_of(case, rank)[1]: losses[step] for rank, (losses, _) in enumerate(outcomes) if losses[step] is not None}
        assert len(of_data_rank) == data_ranks(case), label
        assert statistics.fmean(of_data_rank.values()) == pytest.approx(expected_loss, rel=roundoff), label

    assert set().union(*(parameters for _, parameters in outcomes)) == set(expected), label
    for _, parameters in outcomes:
        for name, parameter in parameters.items():
            tolerance = NUM_STEPS * LEARNING_RATE * roundoff * largest[name]
            tolerance += NUM_STEPS * _UNIT_ROUNDOFF * expected[name].abs().max().item()  # of the parameter itself, in each step
            error = (parameter - expected[name]).abs().max().item()
            assert error <= tolerance, f"{label}: {name} is off by {error}"
