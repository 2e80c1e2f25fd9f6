"""The smallest change that makes a plan possible: each is applied, and then there is one; and a little less is not enough."""

from __future__ import annotations

from typing import Any

import pytest

from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.planner import make_plan
from gpualloc.plan.preparing import PlanOptions
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Plan
from gpualloc.plan.smallest_change import Remedy, smallest_change
from gpualloc.plan.workloads import WorkloadsFile
from tests.plan.inputs import NOW, cluster, impossible, plan_of, workload, workloads_file
from tests.plan.test_planner import BOTH, PRICED, SCALING, TYPES


def remedy_of(file: WorkloadsFile, nodes: ClusterFile) -> Remedy:
    """Checked: there is no plan before and one after."""
    impossible(file, nodes)
    remedy = smallest_change(file, nodes, Knowledge(), PlanOptions(), now_utc=NOW)
    assert remedy is not None
    assert isinstance(plan_of(*remedy.inputs).plan, Plan)
    return remedy


EIGHT = [{"gpu_type": "A100", "num_gpus": n, "samples_per_s": 90.0 * n, "memory_gib": 4} for n in (4, 8)]


@pytest.mark.parametrize(
    ("fields", "nodes", "text"),
    [
        ({"rates": SCALING, "deadline_h": 0.3}, cluster({}), "photos: a deadline of at least 0.334 h (it has 0.3 h)"),
        ({"rates": EIGHT, "min_gpus": 8}, cluster({"num_gpus": 7, "name": "n"}), "1 more A100"),
        ({"rates": EIGHT, "min_gpus": 8}, cluster({"num_gpus": 4}), "photos: min_gpus 8 -> 4"),
        ({"rates": EIGHT, "min_gpus": 8}, cluster({"num_gpus": 8, "reserved": [3]}), "n0: GPU 3 free instead of reserved"),
        ({"rates": BOTH, "gpu_types": ["H100"]}, cluster(*TYPES), "photos: A100 among its gpu_types"),
        (
            {"rates": BOTH, "budget": {"value": 1.5, "currency": "USD"}},
            cluster(*TYPES, **PRICED),
            "photos: a budget of at least 2 USD (it has 1.5)",
        ),
    ],
)
def test_one_workload(fields: dict[str, Any], nodes: ClusterFile, text: str) -> None:
    assert remedy_of(workloads_file(workload(**fields)), nodes).text == text


def test_a_deadline_that_only_clashes_with_another_is_moved_as_little_as_it_takes() -> None:
    file = workloads_file(workload("a", deadline_h=1.5), workload("b", deadline_h=1.9))
    nodes = cluster({"num_gpus": 1})
    remedy = remedy_of(file, nodes)
    assert remedy.text == "b: a deadline of at least 2 h (it has 1.9 h)"
    nearly = file.model_copy(update={"workloads": [file.workloads[0], file.workloads[1].model_copy(update={"deadline_h": 1.99})]})
    impossible(nearly, nodes)


def test_where_one_deadline_is_not_enough_more_gpus_or_all_deadlines_are_named() -> None:
    file = workloads_file(*(workload(name, deadline_h=1.01) for name in "abc"))
    remedy = remedy_of(file, cluster({"num_gpus": 1}))
    assert remedy.text in ("2 more A100", "all deadlines 2.98 times as far away")


def test_two_workloads_that_cannot_run_get_a_change_each() -> None:
    file = workloads_file(workload("a", rates=SCALING, deadline_h=0.3), workload("b", rates=EIGHT, min_gpus=8))
    remedy = remedy_of(file, cluster({}))
    assert [change.text.split(":")[0] for change in remedy.changes] == ["a", "b"]
    assert " and " in remedy.text


def test_memory_has_no_such_change_and_none_is_invented() -> None:
    file = workloads_file(workload(rates=[{"gpu_type": "A100", "num_gpus": 1, "samples_per_s": 9, "memory_gib": 500}], max_gpus=1))
    impossible(file, cluster({}))
    assert smallest_change(file, cluster({}), Knowledge(), PlanOptions(), now_utc=NOW) is None


def test_a_change_is_the_smallest_of_those_that_help() -> None:
    """2 h too late is a tenth of 20 h; one more GPU is a fifth of the cluster."""
    rates = {("A100", 4): 100.0, ("A100", 5): 130.0}
    file = workloads_file(workload(rates=rates, epochs=22, deadline_h=20))
    assert remedy_of(file, cluster({})).text == "photos: a deadline of at least 22 h (it has 20 h)"
    tight = workloads_file(workload(rates=rates, epochs=22, deadline_h=17, batch={"global_batch_size": 120}))
    assert remedy_of(tight, cluster({})).text == "1 more A100"
    assert hasattr(make_plan(*remedy_of(tight, cluster({})).inputs, Knowledge(), PlanOptions(), now_utc=NOW), "plan")


def test_a_type_without_a_price_is_no_remedy_where_money_counts() -> None:
    nodes = cluster({}, {"gpu_type": "T4"}, **{**PRICED, "prices": [each for each in PRICED["prices"] if each["gpu_type"] == "A100"]})
    rates = {("A100", 1): 1.0, ("T4", 1): 100.0}
    file = workloads_file(workload(rates=rates, gpu_types=["A100"], deadline_h=2))
    options = PlanOptions(objective="cost")
    remedy = smallest_change(file, nodes, Knowledge(), options, now_utc=NOW)
    assert remedy is not None
    assert "deadline" in remedy.text


def test_gpus_are_added_as_far_as_the_workload_needs() -> None:
    file = workloads_file(workload(rates={("A100", 32): 100.0}, min_gpus=32, max_gpus=32))
    assert remedy_of(file, cluster({"num_gpus": 8})).text == "24 more A100"
    spare = workloads_file(workload(rates={("A100", 40): 100.0}, min_gpus=20, max_gpus=64, batch={"global_batch_size": 120}))
    assert remedy_of(spare, cluster({"num_gpus": 8, "reserved": [7]})).text == "33 more A100"


def test_of_the_nodes_the_one_where_fewest_gpus_are_freed_is_named() -> None:
    nodes = cluster({"reserved": [0, 1, 2, 3]}, {"reserved": [3]})
    file = workloads_file(workload(rates={("A100", 4): 100.0}, min_gpus=4))
    assert remedy_of(file, nodes).text == "n1: GPU 3 free instead of reserved"


def test_where_deadlines_clash_a_reserved_gpu_may_be_freed() -> None:
    file = workloads_file(*(workload(name, deadline_h=1.01) for name in "ab"))
    assert remedy_of(file, cluster({"num_gpus": 3, "reserved": [1, 2]})).text == "n0: GPU 1 free instead of reserved"


def test_all_deadlines_are_stretched_where_that_is_less_than_adding_gpus() -> None:
    file = workloads_file(*(workload(name, deadline_h=1.5) for name in "abcdefg"))
    remedy = remedy_of(file, cluster({"num_gpus": 2}))
    assert remedy.text == "all deadlines 2.67 times as far away"
