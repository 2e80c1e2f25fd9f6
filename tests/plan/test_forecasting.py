"""The scaling model asked for counts that were not measured."""

from __future__ import annotations

from gpualloc.plan.forecasting import make_forecaster
from gpualloc.plan.offers import find_offers
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.workloads import Workload
from tests.plan.inputs import a100_row, cluster, single, workload


def test_counts_between_and_beyond_those_measured_are_forecast_with_an_interval_or_refused_with_a_reason() -> None:
    rows = [a100_row(0.1 + 0.0005 * size, **single(per_device_batch_size=size)) for size in (16, 32, 64, 128)]
    rows += [
        a100_row(0.1 + 0.0005 * size + 0.004 * (count - 1), per_device_batch_size=size, world_size=count)
        for size in (16, 32, 64, 128)
        for count in (2, 4)
    ]
    knowledge = Knowledge(measurements=tuple(rows), forecaster=make_forecaster(rows))
    batch = {"min_global_batch_size": 64, "max_global_batch_size": 1024, "learning_rate_rule": "linear"}
    wanted = Workload.model_validate(workload(rates={}, batch=batch))
    found = find_offers(wanted, cluster({"num_gpus": 8}), knowledge, min_efficiency=0.0, is_pessimistic=False)
    by_count = {offer.num_gpus: offer for offer in found}
    assert [by_count[count].rate.source for count in (1, 2, 4)] == ["measured"] * 3  # type: ignore[union-attr]
    eight = by_count[8]
    if eight.rate is None:
        assert "no forecast" in str(eight.refusal)
    else:
        assert eight.rate.source.startswith("forecast: ")
        assert eight.rate.low < eight.rate.value < eight.rate.high
        assert by_count[4].rate.value < eight.rate.value  # type: ignore[union-attr]


def test_there_is_no_forecast_from_nothing() -> None:
    assert make_forecaster(()) is None
