"""What a workload could run as: rates by their sources, batches, memory, and GPUs that won't pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gpualloc.plan.offers import Offer, find_offers
from gpualloc.plan.rates import ForecastAnswer, ForecastQuery, Knowledge
from gpualloc.plan.workloads import Workload
from gpualloc.records import Measurement
from tests.plan.inputs import a100_row, cluster, single, workload
from tests.store.sample_measurements import image_case

GIB = 2**30


def offers_of(
    *measurements: Measurement, nodes: Any = None, forecaster: Any = None, min_efficiency: float = 0.5, **fields: Any
) -> dict[tuple[int, int], Offer]:
    """(nodes, GPUs) -> offer of A100s."""
    knowledge = Knowledge(measurements=measurements, forecaster=forecaster)
    wanted = Workload.model_validate(workload(**fields))
    found = find_offers(wanted, nodes or cluster({}), knowledge, min_efficiency=min_efficiency, is_pessimistic=False)
    assert len({(offer.gpu_type, offer.num_nodes, offer.num_gpus) for offer in found}) == len(found)
    return {(offer.num_nodes, offer.num_gpus): offer for offer in found if offer.gpu_type == "A100"}


def test_a_table_comes_before_measurements_and_these_before_the_forecast() -> None:
    def forecaster(queries: Sequence[ForecastQuery]) -> list[ForecastAnswer]:
        assert {query.case.world_size for query in queries} == {4}
        return [ForecastAnswer(step_time_s=(0.04, 0.03, 0.05), reason="extrapolates") for _ in queries]

    rows = [a100_row(0.064, **single()), a100_row(0.016, **single(), seed=1), a100_row(0.032)]
    found = offers_of(*rows, forecaster=forecaster, rates={("A100", 1): 900.0}, batch=batch_range(64, 256))
    one, two, four = (found[1, count].rate for count in (1, 2, 4))
    assert one is not None
    assert two is not None
    assert four is not None
    assert (one.value, one.source) == (900.0, "table")
    assert (two.value, two.source) == (pytest.approx(2 * 64 / 0.032), "measured")
    assert two.low < two.value < two.high
    assert four.source == "forecast: extrapolates"
    assert (four.low, four.value, four.high) == (pytest.approx(256 / 0.05), pytest.approx(256 / 0.04), pytest.approx(256 / 0.03))


def batch_range(low: int, high: int) -> dict[str, Any]:
    return {"min_global_batch_size": low, "max_global_batch_size": high, "learning_rate_rule": "linear"}


def test_what_was_measured_otherwise_does_not_count() -> None:
    others = [
        a100_row(0.01, **single(image_size_px=100)),
        a100_row(0.01, **single(precision="fp32")),
        a100_row(0.01, **single(channels_last=True)),
        a100_row(0.01, **single(ranks_per_gpu=2)),
        a100_row(0.01, **single(model="resnet50")),
    ]
    offer = offers_of(*others, rates={})[1, 1]
    assert offer.is_unknown
    assert "rate is unknown" in str(offer.refusal)


def test_the_newest_measurement_of_a_case_counts() -> None:
    newest_first = [a100_row(0.05, **single()), a100_row(0.1, **single())]
    rate = offers_of(*newest_first, rates={}, batch={"global_batch_size": 64})[1, 1].rate
    assert rate is not None
    assert rate.value == pytest.approx(64 / 0.05)


def test_accumulation_waits_for_the_other_ranks_once() -> None:
    row = a100_row(0.05, compute_time_s=0.04)
    offer = offers_of(row, rates={}, batch={"global_batch_size": 384})[1, 2]
    assert (offer.per_device_batch_size, offer.grad_accum_steps) == (64, 3)
    assert offer.rate is not None
    assert offer.rate.value == pytest.approx(384 / (0.05 + 2 * 0.04))


def test_a_job_that_accumulated_is_read_as_what_it_was() -> None:
    row = a100_row(0.15, grad_accum_steps=3)
    found = offers_of(row, rates={}, batch={"global_batch_size": 384})[1, 2]
    assert found.rate is not None
    assert found.rate.value == pytest.approx(384 / 0.15)


@pytest.mark.parametrize(
    ("batch", "count", "size", "accum", "factor"),
    [
        ({"global_batch_size": 96}, 1, 96, 1, 1.0),
        ({"global_batch_size": 96, "max_per_device_batch_size": 20}, 1, 16, 6, 1.0),
        ({"global_batch_size": 96}, 2, 48, 1, 1.0),
        (batch_range(64, 512), 2, 256, 1, 8.0),
        ({**batch_range(64, 512), "max_per_device_batch_size": 8}, 2, 8, 4, 1.0),
    ],
)
def test_batches_are_what_the_policy_allows(batch: dict[str, Any], count: int, size: int, accum: int, factor: float) -> None:
    offer = offers_of(rates={("A100", count): 100.0}, batch=batch)[1, count]
    assert (offer.per_device_batch_size, offer.grad_accum_steps, offer.learning_rate_factor) == (size, accum, factor)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    assert "a global batch of 3 can be divided among 2 ranks" in str(
        offers_of(rates={("A100", 2): 100.0}, batch={"global_batch_size": 3})[1, 2].refusal
    )
    offer = offers_of(a100_row(0.05), rates={}, batch={"global_batch_size": 100})[1, 2]
    assert "64 samples a rank, as measured, do not make a global batch of 100 on 2 ranks" in str(offer.refusal)


def table(**row: Any) -> list[dict[str, Any]]:
    return [{"gpu_type": "A100", "num_gpus": 1, "samples_per_s": 100.0, **row}]


def test_the_largest_batch_that_fits_by_the_estimate_is_taken() -> None:
    large = offers_of(rates=table(), batch={"global_batch_size": 1024})[1, 1]
    small = offers_of(rates=table(), batch={"global_batch_size": 1024}, nodes=cluster({"memory_gib": 8}))[1, 1]
    assert large.per_device_batch_size == 1024
    assert 1 < small.per_device_batch_size < 1024
    assert small.per_device_batch_size * small.grad_accum_steps == 1024
    assert small.memory_gib is not None
    assert small.memory_gib <= 0.85 * 8


def test_no_batch_fits() -> None:
    offer = offers_of(rates=table(), nodes=cluster({"memory_gib": 0.05}))[1, 1]
    assert "does not fit: about" in str(offer.refusal)
    assert not offer.is_unknown


def test_measured_peaks_correct_the_estimate_and_come_before_it() -> None:
    size = {"global_batch_size": 64}
    plain = offers_of(rates=table(), batch=size)[1, 1]
    assert plain.memory_gib is not None
    elsewhere = a100_row(0.1, **single(per_device_batch_size=32), peak_memory_bytes=int(plain.memory_gib * 2 * GIB))
    corrected = offers_of(elsewhere, rates=table(), batch=size)[1, 1]
    assert corrected.memory_gib is not None
    assert corrected.memory_gib > 2 * plain.memory_gib
    same = a100_row(0.1, **single(), peak_memory_bytes=7 * GIB)
    measured = offers_of(same, rates=table(), batch=size)[1, 1]
    assert (measured.memory_gib, measured.memory_source) == (7.0, "measured")
    pcie = cluster({"memory_gib": 8, "device_name": "NVIDIA A100 PCIe"})
    assert "does not fit: 7.0 GiB (measured) of 6.8 usable of 8" in str(
        offers_of(same, rates=table(per_device_batch_size=64), batch=size, nodes=pcie)[1, 1].refusal
    )


def test_what_ran_out_of_memory_on_that_gpu_is_not_planned() -> None:
    row = a100_row(0.1, **single())
    failed = Measurement(case=row.case, status="oom", reason="out of memory", environment=row.environment)
    offer = offers_of(failed, rates=table(), batch={"global_batch_size": 64, "max_per_device_batch_size": 64})[1, 1]
    assert offer.refusal is None
    assert offer.per_device_batch_size == 32


def test_a_model_that_cannot_be_estimated_needs_a_figure() -> None:
    fields = {"model": "my.package:make", "rates": table()}
    assert "its memory is unknown" in str(offers_of(**fields)[1, 1].refusal)
    assert offers_of(**{**fields, "rates": table(memory_gib=10)})[1, 1].memory_gib == 10


def test_gpus_that_the_rates_say_will_not_pay_are_not_given_and_the_threshold_is_the_reason() -> None:
    rates = {("A100", 1): 100.0, ("A100", 2): 130.0, ("A100", 4): 190.0}
    found = offers_of(rates=rates)
    assert found[1, 2].refusal is None
    assert found[1, 4].refusal == "won't pay: 1.90 times as fast as 1 GPU, 48% efficiency, threshold 50%"
    assert offers_of(rates=rates, min_efficiency=0.4)[1, 4].refusal is None
    slower = offers_of(rates={("A100", 1): 100.0, ("A100", 2): 90.0}, min_efficiency=0.0)
    assert slower[1, 2].refusal == "won't pay: no faster than 1 GPU"


def test_free_in_total_is_not_placeable() -> None:
    nodes = cluster({"num_gpus": 8, "reserved": [4, 5, 6, 7]}, {"num_gpus": 8, "busy": [0, 1, 2, 3]}, network="ib_ndr")
    rates = [{"gpu_type": "A100", "num_gpus": 8, "num_nodes": n, "samples_per_s": 100.0 * n, "memory_gib": 4} for n in (1, 2)]
    found = offers_of(nodes=nodes, rates=rates, min_gpus=8)
    assert found[1, 8].refusal == "needs a node with 8 free, there are 4 + 4"
    assert found[2, 8].refusal is None
    alone = offers_of(nodes=nodes.model_copy(update={"network": None}), rates=rates, min_gpus=8)
    assert alone[2, 8].refusal == "spans nodes, and the cluster file names no network"


def test_a_refused_forecast_is_the_reason() -> None:
    def forecaster(queries: Sequence[ForecastQuery]) -> list[ForecastAnswer]:
        return [ForecastAnswer(step_time_s=None, reason="not enough evidence: measure 2 GPUs") for _ in queries]

    found = offers_of(a100_row(0.05, **single()), rates={}, forecaster=forecaster, batch=batch_range(64, 256))
    assert found[1, 1].refusal is None
    assert found[1, 2].refusal == "no forecast: not enough evidence: measure 2 GPUs"


def test_rehearsed_rates_are_those_over_the_clusters_links() -> None:
    rehearsed = {"gpus_per_node": 4, "link": "nvlink3", "network": None, "world_size": 4}
    nodes = cluster({"link": "nvlink3"})
    offer = offers_of(a100_row(0.05, **rehearsed), rates={}, nodes=nodes, batch={"global_batch_size": 256})[1, 4]
    assert offer.rate is not None
    assert offer.rate.source.startswith("rehearsed: nodes of 4 over nvlink3")
    other = offers_of(a100_row(0.05, **{**rehearsed, "link": "pcie4"}), rates={}, nodes=nodes, batch={"global_batch_size": 256})[1, 4]
    assert other.is_unknown
    assert image_case(**rehearsed).is_rehearsed


TWO = [{"gpu_type": "A100", "num_gpus": 2, "samples_per_s": 190.0, "memory_gib": 4}]


@pytest.mark.parametrize(
    ("fields", "refusal", "is_unknown"),
    [
        ({"rates": TWO, "strategies": ["single"]}, "none of its strategies (single) is for 2 GPUs", False),
        ({"rates": {}, "strategies": ["single"]}, "none of its strategies (single) is for 2 GPUs", False),
        ({"rates": [{**TWO[0], "strategy": "fsdp"}], "strategies": ["single"]}, "its table has strategy fsdp, it allows single", False),
        ({"rates": [{**TWO[0], "strategy": "fsdp"}]}, "its table has strategy fsdp, it allows single, ddp", True),
        ({"rates": [{**TWO[0], "precision": "fp32"}]}, "its table has precision fp32, it allows fp16", True),
        ({"rates": {}, "batch": {"global_batch_size": 3}}, "no batch of a global batch of 3 can be divided among 2 ranks", False),
        ({"rates": {}}, "its rate is unknown: neither in a table nor measured nor forecast", True),
    ],
)
def test_only_what_a_measurement_could_turn_is_unknown(fields: dict[str, Any], refusal: str, is_unknown: bool) -> None:
    offer = offers_of(min_gpus=2, **fields)[1, 2]
    assert (offer.refusal, offer.is_unknown) == (refusal, is_unknown)


def test_a_table_of_other_types_or_counts_is_named_where_the_rate_is_unknown() -> None:
    assert str(offers_of(rates={("a100", 1): 9.0, ("H100", 1): 9.0})[1, 1].refusal).endswith("nor forecast (its table has a100, H100)")
    many = offers_of(rates={("A100", 16): 9.0})[1, 1]
    assert str(many.refusal).endswith("(its table has 16 x A100, it may have 1 to 8)")
    assert str(offers_of(rates={("A100", 1): 9.0})[1, 2].refusal).endswith("nor forecast")
