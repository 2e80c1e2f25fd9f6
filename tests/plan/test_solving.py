"""The search against the MILP, and what every schedule must keep."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpualloc.plan.bound import score_bound
from gpualloc.plan.exact import solve_exact
from gpualloc.plan.problem import Choice, NodeGpus, Planned, Problem, Task, check_schedule
from gpualloc.plan.records import OBJECTIVES, Objective
from gpualloc.plan.scalable import polish, solve_scalable
from gpualloc.plan.solving import solve
from tests.plan.instances import random_problem

seeds, sizes = st.integers(0, 10_000), st.integers(1, 3)


def test_the_search_is_within_a_few_per_cent_of_the_milp_on_30_instances() -> None:
    behind: dict[Objective, list[float]] = {"mean_jct": [], "makespan": []}
    for seed in range(30):
        objective: Objective = "mean_jct" if seed % 2 else "makespan"
        problem = random_problem(seed, num_tasks=4, objective=objective)
        found = solve_scalable(problem, seed=0, max_passes=600)
        assert found is not None
        found = polish(problem, found)
        best = solve_exact(problem, known=found)
        assert best.bound is not None
        score = min(problem.score(found), problem.score(best.schedule) if best.schedule else float("inf"))
        assert score == pytest.approx(best.bound, rel=1e-4)  # the gap is closed
        behind[objective].append(problem.score(found) / score - 1)
    for objective, shares in behind.items():
        assert statistics.mean(shares) < 0.01, objective
        assert max(shares) < 0.05, objective


def test_a_new_plan_is_no_worse_than_the_one_that_is_followed() -> None:
    for seed in range(20):
        problem = random_problem(seed, num_tasks=12)
        followed = solve_scalable(problem, seed=0, max_passes=400)
        assert followed is not None
        followed = polish(problem, followed)
        tasks = []
        for task in problem.tasks:
            slot = followed[task.name]
            tasks.append(
                dataclasses.replace(task, planned=Planned(start_s=slot.start_s, shape=task.choices[slot.choice].shape, nodes=slot.nodes))
            )
        again = dataclasses.replace(problem, tasks=tuple(tasks))
        found = solve_scalable(again, seed=1, max_passes=24)
        assert found is not None
        assert again.score(found) <= problem.score(followed) * (1 + 1e-9), seed


@settings(max_examples=15, deadline=None)
@given(seed=seeds, num_tasks=st.integers(1, 12), objective=st.sampled_from(OBJECTIVES))
def test_no_node_gives_out_more_than_it_has_and_gangs_are_whole(seed: int, num_tasks: int, objective: Objective) -> None:
    problem = random_problem(seed, num_tasks=num_tasks, objective=objective)
    found = solve_scalable(problem, seed=seed, max_passes=60)
    assert found is not None
    assert check_schedule(problem, found) == []
    assert check_schedule(problem, polish(problem, found)) == []
    assert solve_scalable(problem, seed=seed, max_passes=60) == found
    bound = score_bound(problem, makespan_s=problem.makespan_s(found))
    assert bound is not None
    assert bound <= problem.score(found) + 1e-9 * abs(problem.score(found))


@settings(max_examples=8, deadline=None)
@given(seed=seeds, num_tasks=sizes, objective=st.sampled_from(OBJECTIVES), extra=st.integers(0, 2))
def test_more_gpus_never_worsen_the_best_score(seed: int, num_tasks: int, objective: Objective, extra: int) -> None:
    problem = random_problem(seed, num_tasks=num_tasks, objective=objective)
    node = problem.nodes[extra % len(problem.nodes)]
    larger = [dataclasses.replace(each, num_gpus=each.num_gpus + 1) if each is node else each for each in problem.nodes]
    before = solve(problem, seed=0, method="exact", max_passes=60)
    after = solve(dataclasses.replace(problem, nodes=tuple(larger)), seed=0, method="exact", max_passes=60)
    assert before.is_optimal
    assert after.is_optimal
    assert before.score is not None
    assert after.score is not None
    assert after.score <= before.score + 1e-6 * abs(before.score)


@settings(max_examples=8, deadline=None)
@given(seed=seeds, num_tasks=sizes)
def test_deadlines_are_kept_or_no_schedule_is_given(seed: int, num_tasks: int) -> None:
    problem = random_problem(seed, num_tasks=num_tasks, deadline_share=0.8)
    if any(not task.choices for task in problem.tasks):
        assert solve(problem, seed=0).schedule is None
        return
    by_search = solve_scalable(problem, seed=0, max_passes=60)
    best = solve(problem, seed=0, method="exact", max_passes=60)
    if best.schedule is not None:
        assert check_schedule(problem, best.schedule) == []
    else:
        assert best.is_proven_infeasible
        assert by_search is None


def make_choice(num_gpus: int, duration_s: float, *, weight: float = 1.0, num_nodes: int = 1, **fields: float) -> Choice:
    weighted = weight * duration_s
    return Choice(gpu_type="A", num_nodes=num_nodes, num_gpus=num_gpus, duration_s=duration_s, tail_s=weighted, **fields)


def test_a_gang_over_two_nodes_waits_for_both_at_once() -> None:
    nodes = tuple(NodeGpus(name=name, gpu_type="A", num_gpus=4) for name in ("x", "y"))
    long = Task(name="long", weight=10.0, choices=(make_choice(4, 100.0, weight=10.0),))
    short = Task(name="short", weight=10.0, choices=(make_choice(4, 50.0, weight=10.0),))
    gang = Task(name="gang", weight=1.0, choices=(make_choice(8, 10.0, num_nodes=2),))
    problem = Problem(tasks=(gang, long, short), nodes=nodes, objective="mean_jct")
    for method in ("scalable", "exact"):
        found = solve(problem, seed=0, method=method)  # type: ignore[arg-type]
        assert found.schedule is not None
        assert check_schedule(problem, found.schedule) == []
        assert found.schedule["gang"].nodes == ("x", "y")
        assert found.score == pytest.approx((10 * 100 + 10 * 50 + 110) / 21)  # from 50 on one node is free, which is not enough


def test_weights_decide_who_waits() -> None:
    tasks = tuple(
        Task(name=name, weight=weight, choices=(make_choice(1, 100.0, weight=weight),)) for name, weight in (("a", 1.0), ("b", 2.0))
    )
    found = solve(Problem(tasks=tasks, nodes=(NodeGpus(name="x", gpu_type="A", num_gpus=1),), objective="mean_jct"), seed=0)
    assert found.schedule is not None
    assert (found.schedule["b"].start_s, found.schedule["a"].start_s) == (0.0, 100.0)
    assert found.is_optimal


def test_the_gap_is_told_for_more_workloads_than_the_milp_takes() -> None:
    found = solve(random_problem(3, num_tasks=12), seed=0, max_passes=100)
    assert found.method == "scalable"
    assert found.gap is not None
    assert 0 < found.gap < 0.25


@settings(max_examples=6, deadline=None)
@given(seed=seeds, objective=st.sampled_from(OBJECTIVES))
def test_no_exact_score_is_below_the_linear_bound(seed: int, objective: Objective) -> None:
    problem = random_problem(seed, num_tasks=3, objective=objective)
    best = solve_exact(problem)
    assert best.schedule is not None
    bound = score_bound(problem, makespan_s=problem.makespan_s(best.schedule) / 2)  # whatever is cut into slots
    assert bound is not None
    assert bound <= problem.score(best.schedule) + 1e-6 * abs(problem.score(best.schedule))
