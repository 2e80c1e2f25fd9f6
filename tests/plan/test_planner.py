"""Whole plans: devices, queues, objectives, sharing, what runs already, and measuring slots."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpualloc.plan.cluster_file import ClusterNode
from gpualloc.plan.devices import choose
from gpualloc.plan.difference import devices_text, differences
from gpualloc.plan.outcome import Planned
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Assignment, PlannedDevice
from tests.plan.inputs import HOUR_S, NOW, a100_row, cluster, impossible, plan_of, single, workload, workloads_file

SCALING = {("A100", 1): 100.0, ("A100", 2): 180.0, ("A100", 4): 300.0}


def assignment(planned: Planned, name: str = "photos") -> Assignment:
    return next(each for each in planned.plan.assignments if each.workload == name)


def indices(each: Assignment) -> list[int]:
    return [device.index for device in each.devices]


def test_one_workload_gets_what_pays() -> None:
    planned = plan_of(workloads_file(workload(rates=SCALING)), cluster({"uuids": ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]}))
    each = assignment(planned)
    assert (each.num_gpus, each.strategy, each.precision, each.start_s) == (4, "ddp", "fp16", 0.0)
    assert each.finish_s == pytest.approx(1200)
    assert [device.uuid for device in each.devices] == ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
    assert planned.fairness == {"photos": pytest.approx(1.0)}
    assert (planned.method, planned.gap) == ("exact", pytest.approx(0.0, abs=1e-5))


def test_jobs_queue_where_gpus_are_scarce_and_the_heavier_goes_first() -> None:
    file = workloads_file(workload("a"), workload("b", weight=3.0))
    planned = plan_of(file, cluster({"num_gpus": 1}))
    assert [(each.workload, each.start_s) for each in planned.plan.assignments] == [("b", 0.0), ("a", pytest.approx(HOUR_S))]
    assert planned.fairness["a"] == pytest.approx(1.0)
    assert planned.fairness["b"] == pytest.approx(0.5)


def test_pessimistic_plans_use_the_slow_end() -> None:
    rates = [
        {"gpu_type": "A100", "num_gpus": 1, "samples_per_s": 100.0, "memory_gib": 4},
        {"gpu_type": "A100", "num_gpus": 2, "samples_per_s": 180.0, "low": 90.0, "memory_gib": 4},
    ]
    file = workloads_file(workload(rates=rates))
    assert assignment(plan_of(file, cluster({}))).num_gpus == 2
    careful = plan_of(file, cluster({}), is_pessimistic=True)
    assert assignment(careful).num_gpus == 1
    assert careful.plan.is_pessimistic


PRICED: dict[str, Any] = {
    "currency": "USD",
    "prices": [
        {"gpu_type": "A100", "per_gpu_hour": 4.0, "source": "made up"},
        {"gpu_type": "T4", "per_gpu_hour": 1.0, "source": "made up"},
    ],
}
TYPES = ({"num_gpus": 2}, {"gpu_type": "T4", "num_gpus": 1, "memory_gib": 15})
BOTH = {("A100", 1): 100.0, ("A100", 2): 180.0, ("T4", 1): 50.0}


@pytest.mark.parametrize(
    ("objective", "deadline_h", "gpus"),
    [
        ("mean_jct", None, (2, "A100")),
        ("makespan", None, (2, "A100")),
        ("cost", None, (1, "T4")),
        ("cost", 1.5, (1, "A100")),
        ("cost", 0.8, (2, "A100")),
        ("throughput_per_money", None, (1, "T4")),
    ],
)
def test_objectives(objective: str, deadline_h: float | None, gpus: tuple[int, str]) -> None:
    planned = plan_of(workloads_file(workload(rates=BOTH, deadline_h=deadline_h)), cluster(*TYPES, **PRICED), objective=objective)
    each = assignment(planned)
    assert (each.num_gpus, each.gpu_type) == gpus
    assert each.cost is not None
    assert each.cost.currency == "USD"
    assert planned.cost is not None
    assert planned.cost.value == pytest.approx(each.cost.value)


def test_a_budget_binds_under_every_objective() -> None:
    planned = plan_of(workloads_file(workload(rates=BOTH, budget={"value": 3, "currency": "USD"})), cluster(*TYPES, **PRICED))
    assert assignment(planned).gpu_type == "T4"
    refused = {row.offer.shape: row.why_not for row in planned.considered}
    assert refused["A100", 1, 1] == "over its budget: 4.00 of 3 USD"
    euros = impossible(workloads_file(workload(rates=BOTH, budget={"value": 3, "currency": "EUR"})), cluster(*TYPES, **PRICED))
    assert "its budget is in EUR and the cluster's prices are in USD" in euros.reasons[0]


def test_what_was_not_chosen_says_what_it_would_have_cost() -> None:
    planned = plan_of(workloads_file(workload(rates=SCALING)), cluster({}))
    reasons = {row.offer.num_gpus: (row.is_chosen, row.why_not) for row in planned.considered}
    assert reasons[1] == (False, "mean completion 1.00 h instead of 0.33 h")
    assert reasons[4] == (True, None)


def node(**fields: Any) -> ClusterNode:
    return ClusterNode.model_validate({"name": "n", "gpu_type": "A100", "num_gpus": 8, **fields})


@pytest.mark.parametrize(
    ("free", "count", "chosen"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 4, [0, 1, 2, 3]),
        ([0, 1, 2, 4, 5], 2, [4, 5]),  # the island that is left with the fewest
        ([0, 1, 2, 4, 5], 3, [0, 1, 2]),
        ([1, 2, 3, 4, 5, 6, 7], 4, [4, 5, 6, 7]),
        ([0, 1, 4, 5, 6], 4, [0, 4, 5, 6]),  # none has four: the fewest islands
    ],
)
def test_nvlink_islands_are_kept_together(free: list[int], count: int, chosen: list[int]) -> None:
    assert choose(node(islands=[[0, 1, 2, 3], [4, 5, 6, 7]]), free, count) == chosen


def test_inside_an_island_numa_nodes_are_kept_together() -> None:
    assert choose(node(numa=[[0, 2, 4, 6], [1, 3, 5, 7]]), [0, 1, 2, 3, 5], 3) == [1, 3, 5]


def test_an_assignment_over_islands_is_noted() -> None:
    nodes = cluster({"islands": [[0, 1], [2, 3]]})
    planned = plan_of(workloads_file(workload(rates={("A100", 4): 300.0}, min_gpus=4)), nodes)
    assert "over 2 NVLink islands" in planned.notes[0]


SHARED = {"workloads": ["a", "b"], "gpu_type": "A100", "slowdown": {"a": 1.2, "b": 1.3}, "source": "measured"}


def test_two_small_jobs_share_a_gpu_where_it_is_measured_and_allowed() -> None:
    jobs = [workload(name, may_share_gpu=True) for name in ("a", "b")]
    alone = plan_of(workloads_file(*jobs), cluster({"num_gpus": 1}))
    assert assignment(alone, "b").start_s == pytest.approx(HOUR_S)
    together = plan_of(workloads_file(*jobs, sharing=[SHARED]), cluster({"num_gpus": 1}))
    a, b = assignment(together, "a"), assignment(together, "b")
    assert (a.start_s, b.start_s, a.devices) == (0.0, 0.0, b.devices)
    assert (a.shares_gpu_with, b.shares_gpu_with) == (("b",), ("a",))
    assert a.finish_s == pytest.approx(1.2 * HOUR_S)
    # When a has ended, b has done 1.2 / 1.3 of its hour, and has the GPU for itself.
    assert b.finish_s == pytest.approx(1.2 * HOUR_S + (1 - 1.2 / 1.3) * HOUR_S)
    assert a.samples_per_s.value == pytest.approx(100 / 1.2)


@pytest.mark.parametrize(
    ("memory_gib", "may_share", "slowdown"), [(40.0, True, 1.2), (4.0, False, 1.2), (4.0, True, 2.5)], ids=["memory", "not allowed", "slow"]
)
def test_jobs_do_not_share_where_that_does_not_fit_or_does_not_help(memory_gib: float, may_share: bool, slowdown: float) -> None:
    rates = [{"gpu_type": "A100", "num_gpus": 1, "samples_per_s": 100.0, "memory_gib": memory_gib}]
    jobs = [workload(name, may_share_gpu=may_share, rates=rates) for name in ("a", "b")]
    entry = {**SHARED, "slowdown": {"a": slowdown, "b": slowdown}}
    planned = plan_of(workloads_file(*jobs, sharing=[entry]), cluster({"num_gpus": 1}))
    assert [each.shares_gpu_with for each in planned.plan.assignments] == [(), ()]


def test_sharing_goes_on_when_planned_again() -> None:
    file = workloads_file(*(workload(name, may_share_gpu=True) for name in ("a", "b")), sharing=[SHARED])
    first = plan_of(file, cluster({"num_gpus": 1})).plan
    later = plan_of(file, cluster({"num_gpus": 1}), current=first, now_utc=NOW + timedelta(seconds=600))
    assert [each.start_s for each in later.plan.assignments] == [0.0, 0.0]
    assert assignment(later, "a").finish_s == pytest.approx(1.2 * HOUR_S - 600)


def test_a_running_job_is_not_moved_for_little() -> None:
    file = workloads_file(workload(rates={("A100", 1): 100.0, ("T4", 1): 97.0}, restart_cost_s=0.0))
    both = cluster({"num_gpus": 1}, {"gpu_type": "T4", "num_gpus": 1})
    first = plan_of(file, cluster({"gpu_type": "T4", "num_gpus": 1, "name": "n1"})).plan
    later = NOW + timedelta(seconds=60)
    kept = plan_of(file, both, current=first, now_utc=later)
    assert assignment(kept).gpu_type == "T4"
    assert [each.kind for each in differences(first, kept.plan, {}, elapsed_s=60)] == ["stays"]
    moved = plan_of(file, both, current=first, now_utc=later, hysteresis=0.001)
    assert assignment(moved).gpu_type == "A100"


def test_a_move_pays_its_restart_and_is_told() -> None:
    file = workloads_file(workload(rates=SCALING, restart_cost_s=100.0))
    first = plan_of(file, cluster({"num_gpus": 1})).plan
    later = plan_of(file, cluster({"num_gpus": 4}), current=first, now_utc=NOW + timedelta(seconds=600))
    each = assignment(later)
    assert each.samples_done == pytest.approx(60_000)
    assert each.finish_s == pytest.approx(100 + 300_000 / 300)
    (change,) = differences(first, later.plan, {name.name: name for name in file.workloads}, elapsed_s=600)
    assert change.text == "photos moves: 1 x A100 (n0: 0) -> 4 x A100 (n0: 0-3), a restart of 100 s"
    near_its_end = plan_of(file, cluster({"num_gpus": 4}), current=first, now_utc=NOW + timedelta(seconds=3500))
    assert assignment(near_its_end).num_gpus == 1


def test_what_is_not_preemptible_stays_on_its_devices() -> None:
    file = workloads_file(workload("old", rates=SCALING, preemptible=False), workload("new", rates=SCALING, weight=100.0))
    first = plan_of(workloads_file(file.workloads[0].model_dump()), cluster({"num_gpus": 4})).plan
    later = plan_of(file, cluster({"num_gpus": 4}), current=first, now_utc=NOW + timedelta(seconds=60))
    assert (assignment(later, "old").start_s, len(assignment(later, "old").devices)) == (0.0, 4)
    assert assignment(later, "new").start_s == pytest.approx(1140)


def test_progress_is_what_the_workload_says_or_what_the_plan_foresaw() -> None:
    said = workloads_file(workload(samples_done=180_000))
    first = plan_of(workloads_file(workload()), cluster({})).plan
    later = NOW + timedelta(seconds=600)
    assert assignment(plan_of(said, cluster({}), current=first, now_utc=later)).finish_s == pytest.approx(1800)
    assert assignment(plan_of(workloads_file(workload()), cluster({}), current=first, now_utc=later)).finish_s == pytest.approx(3000)
    late = plan_of(workloads_file(workload()), cluster({}), current=first, now_utc=NOW + timedelta(hours=2))
    assert assignment(late).finish_s == pytest.approx(36)
    assert "should have ended" in late.notes[0]


def test_gpus_that_our_own_jobs_make_busy_are_theirs() -> None:
    file = workloads_file(workload())
    first = plan_of(file, cluster({"num_gpus": 2})).plan
    nodes = cluster({"num_gpus": 2, "busy": [0, 1]})
    later = plan_of(file, nodes, current=first, now_utc=NOW + timedelta(seconds=60))
    assert indices(assignment(later)) == indices(first.assignments[0])


def test_a_measured_rate_takes_the_place_of_the_planned_one() -> None:
    file = workloads_file(workload(batch={"global_batch_size": 64}))
    first = plan_of(file, cluster({})).plan
    row = a100_row(64 / 50.0, **single())
    later = plan_of(file, cluster({}), knowledge=Knowledge(measurements=(row,)), current=first, now_utc=NOW + timedelta(seconds=60))
    assert assignment(later).samples_per_s.value == pytest.approx(50)
    assert assignment(later).samples_per_s.source == "measured"


def test_an_unknown_rate_gets_a_measuring_slot_first() -> None:
    file = workloads_file(workload("known"), workload("new", rates={}, min_gpus=2, batch={"global_batch_size": 64}))
    planned = plan_of(file, cluster({"num_gpus": 2}))
    (slot,) = planned.plan.measuring
    assert (slot.workload, len(slot.devices), slot.start_s) == ("new", 2, 0.0)
    command = " ".join(slot.command)
    assert command.startswith("gpualloc bench --device cuda --workload image --model mobilenet_v2 --image-size 200 --precision fp16")
    assert "--strategy single,ddp --gpus 2" in command
    assert "--batch-size 32" in command
    assert [each.workload for each in planned.plan.waiting] == ["new"]
    assert assignment(planned, "known").start_s == pytest.approx(300)


def test_what_is_measured_is_what_the_workload_may_use() -> None:
    new = workload("new", rates={}, min_gpus=2, strategies=["fsdp", "tensor_parallel"], batch={"global_batch_size": 64})
    (slot,) = plan_of(workloads_file(new), cluster({"num_gpus": 2}), may_wait=True).plan.measuring
    command = " ".join(slot.command)
    assert "--strategy fsdp,tensor_parallel --gpus 2" in command
    assert "--hook" not in command


def test_a_workload_that_cannot_run_makes_the_plan_impossible_or_waits() -> None:
    file = workloads_file(workload("fine"), workload("huge", min_gpus=8, rates={("A100", 8): 100.0}))
    refused = impossible(file, cluster({}))
    assert "huge" in refused.reasons[0]
    assert "needs a node with 8 free" in refused.reasons[0] or "needs 8 GPUs or more, the cluster has 4" in refused.reasons[0]
    planned = plan_of(file, cluster({}), may_wait=True)
    assert [each.workload for each in planned.plan.assignments] == ["fine"]
    assert planned.plan.waiting[0].workload == "huge"


def test_of_two_clashing_deadlines_the_less_important_waits_where_it_may() -> None:
    file = workloads_file(workload("a", deadline_h=1.2), workload("b", deadline_h=1.2, weight=2.0))
    assert impossible(file, cluster({"num_gpus": 1})).is_proven
    planned = plan_of(file, cluster({"num_gpus": 1}), may_wait=True)
    assert [each.workload for each in planned.plan.assignments] == ["b"]
    assert "deadline cannot be kept" in planned.plan.waiting[0].reason


def test_devices_in_words() -> None:
    devices = [PlannedDevice(node=name, index=index) for name, index in (("b", 1), ("a", 0), ("a", 1), ("a", 3))]
    assert devices_text(devices) == "a: 0-1 3, b: 1"


counts = st.sampled_from([1, 2, 3, 4, 8])
rate_tables = st.dictionaries(st.tuples(st.sampled_from(["A100", "T4"]), counts), st.floats(10, 500), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(
    tables=st.lists(rate_tables, min_size=1, max_size=6),
    memory_gib=st.sampled_from([2.0, 3.0, 15.0]),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 4)),
    seed=st.integers(0, 5),
)
def test_every_plan_is_sound(tables: list[dict[Any, float]], memory_gib: float, sizes: tuple[int, int], seed: int) -> None:
    jobs = [workload(f"job{number}", rates=table, batch={"global_batch_size": 24}) for number, table in enumerate(tables)]
    reserved = [0] if sizes[0] > 1 else []
    nodes = cluster({"num_gpus": sizes[0], "reserved": reserved}, {"gpu_type": "T4", "num_gpus": sizes[1], "memory_gib": memory_gib})
    options: dict[str, Any] = {"may_wait": True, "seed": seed, "method": "scalable"}
    planned = plan_of(workloads_file(*jobs), nodes, **options)
    assert plan_of(workloads_file(*jobs), nodes, **options).plan == planned.plan
    held: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for each in planned.plan.assignments:
        assert len(set(each.devices)) == each.num_gpus
        assert (each.gpu_type, each.num_gpus) in tables[int(each.workload[3:])]
        assert each.per_device_batch_size * each.grad_accum_steps * each.num_gpus == 24
        for device in each.devices:
            where = nodes.node(device.node)
            assert where.gpu_type == each.gpu_type
            assert device.index in where.available
            assert where.memory_gib is not None
            assert each.memory_gib is not None
            assert each.memory_gib <= 0.85 * where.memory_gib
            held[device.node, device.index].append((each.start_s, each.finish_s))
    for spans in held.values():
        ordered = sorted(spans)
        assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(ordered))
    placed = {each.workload for each in planned.plan.assignments} | {each.workload for each in planned.plan.waiting}
    assert placed == {job["name"] for job in jobs}
    assert dataclasses.asdict(planned.plan)["seed"] == seed


@settings(max_examples=10, deadline=None)
@given(
    tables=st.lists(rate_tables, min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    more=st.sampled_from([(1, 0), (0, 1), (2, 2)]),
    objective=st.sampled_from(["mean_jct", "makespan", "cost"]),
)
def test_more_gpus_never_worsen_the_best_plan(
    tables: list[dict[Any, float]], sizes: tuple[int, int], more: tuple[int, int], objective: str
) -> None:
    jobs = [workload(f"job{number}", rates=table, batch={"global_batch_size": 24}) for number, table in enumerate(tables)]

    def best(num_a100: int, num_t4: int) -> tuple[int, float]:
        nodes = cluster({"num_gpus": num_a100}, {"gpu_type": "T4", "num_gpus": num_t4, "memory_gib": 15}, **PRICED)
        planned = plan_of(workloads_file(*jobs), nodes, may_wait=True, method="exact", objective=objective)
        placed = planned.plan.assignments
        if objective == "cost":  # of the score a ten-thousandth tells equal costs apart, by times that are relative to what the cluster has
            return len(placed), sum(each.cost.value for each in placed if each.cost)
        return len(placed), 0.0 if planned.score is None else planned.score

    (few, score), (many, more_score) = best(*sizes), best(sizes[0] + more[0], sizes[1] + more[1])
    assert many >= few, "a workload that had room has room"
    assert many > few or more_score <= score * (1 + 1e-5)  # as near as the exact method goes
