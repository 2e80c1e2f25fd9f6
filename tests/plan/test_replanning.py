"""A plan beside the one that runs: nobody is started twice, stopped for others or robbed of what was done."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gpualloc.errors import UsageError
from gpualloc.plan.difference import differences
from gpualloc.plan.outcome import Impossible
from gpualloc.plan.planner import make_plan
from gpualloc.plan.preparing import PlanOptions
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Assignment, Plan
from tests.plan.inputs import HOUR_S, NOW, cluster, plan_of, workload, workloads_file

TWO = {("A100", 1): 100.0, ("A100", 2): 190.0}


def again(current: Plan, *workloads: dict[str, Any], nodes: Any, after_s: float, **options: Any) -> Plan:
    return plan_of(workloads_file(*workloads), nodes, current=current, now_utc=NOW + timedelta(seconds=after_s), **options).plan


def by_name(plan: Plan) -> dict[str, Assignment]:
    return {each.workload: each for each in plan.assignments}


def is_double(plan: Plan) -> bool:
    return any(
        {(d.node, d.index) for d in one.devices} & {(d.node, d.index) for d in other.devices}
        and one.start_s < other.finish_s - 1e-3
        and other.start_s < one.finish_s - 1e-3
        for place, one in enumerate(plan.assignments)
        for other in plan.assignments[place + 1 :]
    )


@pytest.mark.parametrize("preemptible", [True, False])
def test_who_waits_for_one_that_is_late_has_not_started(preemptible: bool) -> None:
    jobs = [workload(name, preemptible=preemptible, max_gpus=1, weight=weight) for name, weight in (("first", 2.0), ("second", 1.0))]
    nodes = cluster({"num_gpus": 1})
    plan = plan_of(workloads_file(*jobs), nodes).plan
    assert by_name(plan)["second"].start_s == HOUR_S
    later = again(plan, *jobs, nodes=nodes, after_s=1.5 * HOUR_S)
    assert not is_double(later)
    assert by_name(later)["second"].samples_done == 0
    assert by_name(later)["second"].start_s == pytest.approx(0.01 * HOUR_S)
    changes = differences(plan, later, {}, elapsed_s=1.5 * HOUR_S)
    assert [(each.workload, each.kind) for each in changes] == [("first", "stays"), ("second", "stays")]


def test_what_a_stopped_workload_has_done_is_kept_however_often_it_is_planned() -> None:
    jobs = [workload("old", max_gpus=1, restart_cost_s=60.0), workload("urgent", max_gpus=1, weight=100.0)]
    nodes = cluster({"num_gpus": 1})
    plan = again(plan_of(workloads_file(jobs[0]), nodes).plan, *jobs, nodes=nodes, after_s=1800)
    for seconds in (1801, 1802):
        old = by_name(plan)["old"]
        assert (old.samples_done, old.start_s > 0) == (pytest.approx(180_000), True)
        assert old.finish_s - old.start_s == pytest.approx(60 + 1800)
        at = NOW + timedelta(seconds=seconds)
        plan = plan_of(workloads_file(*jobs), nodes, current=plan, now_utc=at).plan


def test_progress_begins_after_the_restart_and_loses_no_parts_of_seconds() -> None:
    job = workload(rates=TWO, restart_cost_s=300.0)
    moved = again(plan_of(workloads_file(job), cluster({"num_gpus": 1})).plan, job, nodes=cluster({"num_gpus": 2}), after_s=600.4)
    (each,) = moved.assignments
    assert (each.num_gpus, each.samples_done) == (2, pytest.approx(60_040))
    for after_s, trained_s in ((200, 0), (400, 100)):
        (later,) = again(moved, job, nodes=cluster({"num_gpus": 2}), after_s=600.4 + after_s).assignments
        assert later.samples_done == pytest.approx(60_040 + 190 * trained_s)


def test_a_running_workload_makes_room_on_another_node() -> None:
    pair = {("A100", 2): 100.0}
    jobs = [workload(name, rates=pair, restart_cost_s=60.0) for name in ("a", "b")]
    nodes = cluster({}, {})
    spread = plan_of(workloads_file(*jobs), cluster({"num_gpus": 2}, {"num_gpus": 2})).plan
    assert len({device.node for each in spread.assignments for device in each.devices}) == 2
    whole = workload("whole", rates={("A100", 4): 400.0}, weight=20.0, deadline_h=0.5)
    plan = again(spread, *jobs, whole, nodes=nodes, after_s=60)
    assert by_name(plan)["whole"].start_s == 0
    assert len({device.node for name in "ab" for device in by_name(plan)[name].devices}) == 1


@pytest.mark.parametrize("preemptible", [True, False])
def test_watching_stops_nothing_that_runs_for_a_newcomers_deadline(preemptible: bool) -> None:
    jobs = [workload(name, max_gpus=1, preemptible=preemptible, restart_cost_s=600.0, deadline_h=1.05) for name in "ab"]
    nodes = cluster({"num_gpus": 2})
    plan = plan_of(workloads_file(*jobs), nodes).plan
    urgent = workload("urgent", max_gpus=1, weight=5.0, deadline_h=1.0)
    later = again(plan, *jobs, urgent, nodes=nodes, after_s=600, may_wait=True)
    assert [each.workload for each in later.waiting] == ["urgent"]
    assert [by_name(later)[name].start_s for name in "ab"] == [0.0, 0.0]


def test_a_deadline_binds_what_runs() -> None:
    job = workload(rates=TWO, deadline_h=0.5, restart_cost_s=0.0)
    plan = plan_of(workloads_file(workload(rates=TWO)), cluster({"num_gpus": 1})).plan
    late = workloads_file(job)
    found = make_plan(late, cluster({"num_gpus": 1}), Knowledge(), PlanOptions(), now_utc=NOW + timedelta(seconds=60), current=plan)
    assert isinstance(found, Impossible)
    moved = again(plan, {**job, "deadline_h": 0.6}, nodes=cluster({"num_gpus": 2}), after_s=60, hysteresis=0.9)
    assert by_name(moved)["photos"].num_gpus == 2
    goes_on = plan_of(late, cluster({"num_gpus": 1}), current=plan, now_utc=NOW + timedelta(seconds=60), may_wait=True)
    assert [(each.workload, each.start_s) for each in goes_on.plan.assignments] == [("photos", 0.0)]
    assert any("cannot keep its deadline" in note for note in goes_on.notes)


def test_gpus_that_our_own_workloads_make_busy_are_free_for_those_after_them() -> None:
    job = workload("a", max_gpus=1)
    plan = plan_of(workloads_file(job), cluster({"num_gpus": 1})).plan
    queued = again(plan, job, workload("b", max_gpus=1), nodes=cluster({"num_gpus": 1, "busy": [0]}), after_s=60)
    assert by_name(queued)["b"].start_s == pytest.approx(HOUR_S - 60)
    assert queued.cluster.nodes[0].unavailable == ()


@pytest.mark.parametrize(
    ("changes", "num_gpus", "precision"),
    [({"max_gpus": 1}, 1, "fp16"), ({"precisions": ["fp32"]}, 2, "fp32")],
)
def test_changed_limits_hold_for_what_runs(changes: dict[str, Any], num_gpus: int, precision: str) -> None:
    plan = plan_of(workloads_file(workload(rates=TWO)), cluster({"num_gpus": 2})).plan
    assert by_name(plan)["photos"].num_gpus == 2
    (each,) = again(plan, workload(rates=TWO, **changes), nodes=cluster({"num_gpus": 2}), after_s=60).assignments
    assert (each.num_gpus, each.precision) == (num_gpus, precision)


def test_a_corrected_table_is_what_a_running_workload_goes_by() -> None:
    plan = plan_of(workloads_file(workload()), cluster({"num_gpus": 1})).plan
    slower = workload(rates={("A100", 1): 50.0})
    (each,) = again(plan, slower, nodes=cluster({"num_gpus": 1}), after_s=600).assignments
    assert (each.samples_per_s.value, each.samples_done) == (50.0, 30_000)


def test_a_node_whose_gpus_were_replaced_runs_nothing_of_the_old_plan() -> None:
    job = workload(rates={("A100", 1): 100.0, ("H100", 1): 200.0}, restart_cost_s=60.0)
    plan = plan_of(workloads_file(job), cluster({"num_gpus": 1})).plan
    (each,) = again(plan, job, nodes=cluster({"num_gpus": 1, "gpu_type": "H100"}), after_s=600).assignments
    assert (each.gpu_type, each.finish_s) == ("H100", pytest.approx(60 + 300_000 / 200))


def test_a_current_plan_whose_rates_are_none_is_refused() -> None:
    plan = plan_of(workloads_file(workload()), cluster({})).plan
    (each,) = plan.assignments
    broken = replace(plan, assignments=(replace(each, samples_per_s=replace(each.samples_per_s, value=0.0)),))
    with pytest.raises(UsageError, match="the rate of photos in the current plan is not above 0"):
        again(broken, workload(), nodes=cluster({}), after_s=60)


def test_what_runs_for_ever_by_the_current_plan_is_named() -> None:
    plan = plan_of(workloads_file(workload()), cluster({})).plan
    (each,) = plan.assignments
    rate = replace(each.samples_per_s, value=1e-10, low=1e-10)
    broken = replace(plan, assignments=(replace(each, precision="bf16", samples_per_s=rate),))  # no table has it, so the plan's rate counts
    with pytest.raises(UsageError, match=r"photos: .* samples at 1e-10 a second where it runs take more than 1e\+12 s"):
        again(broken, workload(), nodes=cluster({}), after_s=60)
