"""Concrete nodes: running jobs in place, gangs whole, few fragments, few moved."""

from __future__ import annotations

import numpy as np

from gpualloc.plan.choices import Choices, choices_of
from gpualloc.plan.placement import place
from gpualloc.plan.protocol import Allocation, Cluster, Job
from tests.plan.made_jobs import check_promises, make_cluster, make_job


def pick(choices: Choices, counts: dict[str, int]) -> np.ndarray:
    """The choice with so many GPUs for each job."""
    return np.array([choices.num_gpus.tolist().index(counts[job.job_id]) if job.job_id in counts else -1 for job in choices.jobs])


def placed(jobs: list[Job], cluster: Cluster, current: dict[str, Allocation], **counts: int) -> dict[str, dict[str, int]]:
    choices = choices_of(jobs, cluster, current)
    plan = place(choices, pick(choices, counts), cluster, current)
    check_promises(plan, jobs, cluster)
    return {job_id: dict(held.gpus_by_node) for job_id, held in plan.items()}


def on(**nodes: int) -> Allocation:
    return Allocation.of("slow", nodes)


def test_who_keeps_the_count_keeps_the_nodes_and_the_rest_fits_best() -> None:
    cluster = make_cluster(a=("slow", 4), b=("slow", 4))
    jobs = [make_job(name) for name in "xyz"]
    assert placed(jobs, cluster, {"x": on(b=2)}, x=2, y=2, z=4) == {"x": {"b": 2}, "y": {"b": 2}, "z": {"a": 4}}


def test_a_gang_over_nodes_takes_whole_ones() -> None:
    cluster = make_cluster(a=("slow", 4), b=("slow", 4), c=("slow", 4))
    jobs = [make_job("big"), make_job("small")]
    assert placed(jobs, cluster, {"small": on(a=1)}, big=8, small=1) == {"big": {"b": 4, "c": 4}, "small": {"a": 1}}


def test_fragments_are_joined_by_moving_the_least() -> None:
    """Free are 1 + 2 + 1: for 4 GPUs the node with the fewest in use is cleared, and its job goes where there is room."""
    cluster = make_cluster(a=("slow", 4), b=("slow", 4))
    jobs = [make_job(name) for name in ("one", "two", "new")]
    result = placed(jobs, cluster, {"one": on(a=1), "two": on(b=2)}, one=1, two=2, new=4)
    assert result == {"one": {"b": 1}, "two": {"b": 2}, "new": {"a": 4}}


def test_a_job_that_may_not_move_is_not_moved() -> None:
    cluster = make_cluster(a=("slow", 4), b=("slow", 4))
    jobs = [make_job("one", preemptible=False), make_job("two"), make_job("new")]
    result = placed(jobs, cluster, {"one": on(a=1), "two": on(b=2)}, one=1, two=2, new=4)
    assert result == {"one": {"a": 1}, "two": {"a": 2}, "new": {"b": 4}}


def test_where_nothing_helps_the_job_gets_less() -> None:
    cluster = make_cluster(a=("slow", 4), b=("slow", 4))
    jobs = [make_job("one", preemptible=False), make_job("two", preemptible=False), make_job("new")]
    result = placed(jobs, cluster, {"one": on(a=1), "two": on(b=1)}, one=1, two=1, new=4)
    assert result["new"] in ({"a": 2}, {"b": 2})


def test_a_lost_node_frees_its_job_to_start_elsewhere() -> None:
    cluster = make_cluster(b=("slow", 4))
    choices = choices_of([make_job("j")], cluster, {"j": on(a=2)})
    assert choices.held.tolist() == [-1]
    assert placed([make_job("j")], cluster, {"j": on(a=2)}, j=2) == {"j": {"b": 2}}
