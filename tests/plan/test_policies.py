"""What every policy promises, and small cases whose best answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpualloc.errors import UsageError
from gpualloc.plan.choices import choices_of, shapes_of
from gpualloc.plan.policies import DEFAULT_POLICY, POLICIES, policy_named
from gpualloc.plan.protocol import Allocation, Cluster, Job
from tests.plan.made_jobs import check_promises, make_cluster, make_job, situations

TWO_TYPES = make_cluster(a=("slow", 4), b=("slow", 4), c=("fast", 8))


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(situation=situations(), shuffle=st.randoms(use_true_random=False))
def test_promises_hold_in_any_situation(name: str, situation: tuple[list[Job], Cluster, dict[str, Allocation]], shuffle: object) -> None:
    jobs, cluster, current = situation
    plan = policy_named(name).allocate(0.0, jobs, cluster, current)
    check_promises(plan, jobs, cluster)
    for job in jobs:
        if not job.preemptible and job.job_id in current:
            assert plan[job.job_id] == current[job.job_id]
    mixed = list(jobs)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    assert policy_named(name).allocate(0.0, mixed, cluster, dict(current)) == plan


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_to_do(name: str) -> None:
    assert policy_named(name).allocate(0.0, [], TWO_TYPES, {}) == {}
    assert policy_named(name).allocate(0.0, [make_job("j")], Cluster(nodes=()), {}) == {}


@pytest.mark.parametrize("name", POLICIES)
def test_a_lone_job_runs_on_the_better_type(name: str) -> None:
    plan = policy_named(name).allocate(0.0, [make_job("j", exponent=0.95, progress_left=1e5)], TWO_TYPES, {})
    assert plan["j"].gpu_type == "fast" or name == "pollux"  # which knows no types


@pytest.mark.parametrize("name", ["gpualloc", "sia"])
def test_each_job_gets_the_type_that_suits_it(name: str) -> None:
    cluster = make_cluster(a=("slow", 2), b=("fast", 2))
    picky = make_job("picky", speeds={"slow": 1.0, "fast": 6.0}, exponent=0.9, progress_left=1e5)
    easy = make_job("easy", speeds={"slow": 1.0, "fast": 1.2}, exponent=0.9, progress_left=1e5)
    plan = policy_named(name).allocate(0.0, [easy, picky], cluster, {})
    assert {job_id: held.gpu_type for job_id, held in plan.items()} == {"picky": "fast", "easy": "slow"}


def test_short_jobs_go_first_where_gpus_are_short() -> None:
    cluster = make_cluster(a=("slow", 2))
    jobs = [make_job(f"j{left}", max_gpus=1, progress_left=float(left)) for left in (9000, 300, 50_000, 600, 20_000)]
    assert set(policy_named().allocate(0.0, jobs, cluster, {})) == {"j300", "j600"}
    wide = [replace(job, max_gpus=2) for job in jobs]
    assert set(policy_named().allocate(0.0, wide, cluster, {})) <= {"j300", "j600"}


def test_with_less_left_a_job_is_not_moved_for_little() -> None:
    """Twice the rate is worth 250 s without progress where hours are left, not where minutes are."""
    cluster = make_cluster(a=("slow", 1), b=("fast", 1))
    current = {"j": Allocation.of("slow", {"a": 1})}
    job = make_job("j", speeds={"slow": 1.0, "fast": 2.0}, age_s=7200.0, restart_cost_s=250.0)
    policy = policy_named()
    assert policy.allocate(0.0, [replace(job, progress_left=300.0)], cluster, current) == current
    assert policy.allocate(0.0, [replace(job, progress_left=36_000.0)], cluster, current)["j"].gpu_type == "fast"


def test_a_move_has_to_pay_before_the_next_change() -> None:
    """A job with hours left goes where it runs twice as fast among jobs that stay; not while the others are about to end."""
    cluster = make_cluster(a=("slow", 1), b=("fast", 1), c=("other", 4))
    job = make_job("j", speeds={"slow": 1.0, "fast": 2.0}, age_s=7200.0, restart_cost_s=250.0, progress_left=36_000.0)
    current = {"j": Allocation.of("slow", {"a": 1})} | {f"o{number}": Allocation.of("other", {"c": 1}) for number in range(4)}
    for left, kind in ((100.0, "slow"), (36_000.0, "fast")):
        others = [
            make_job(f"o{n}", speeds={"other": 1.0}, max_gpus=1, age_s=60.0, progress_done=100.0, progress_left=left) for n in range(4)
        ]
        assert policy_named().allocate(0.0, [job, *others], cluster, current)["j"].gpu_type == kind


def test_drift_moves_nobody_until_something_comes_or_goes() -> None:
    """On each other's better type: left so while every GPU is held, changed with an arrival, with a free GPU, or after an hour without."""
    cluster = make_cluster(a=("slow", 1), b=("fast", 1))
    job = make_job("x", speeds={"slow": 1.0, "fast": 8.0}, max_gpus=1, age_s=1800.0, progress_done=100.0, progress_left=20_000.0)
    odd = make_job("y", speeds={"slow": 8.0, "fast": 1.0}, max_gpus=1, age_s=1800.0, progress_done=100.0, progress_left=20_000.0)
    current = {"x": Allocation.of("slow", {"a": 1}), "y": Allocation.of("fast", {"b": 1})}
    policy = policy_named()
    assert policy.allocate(0.0, [job, odd], cluster, current) == current
    new = replace(odd, job_id="z", age_s=0.0, progress_done=0.0, progress_left=90_000.0)
    assert policy.allocate(0.0, [job, odd, new], cluster, current)["x"].gpu_type == "fast"
    calm = [replace(one, age_s=7200.0) for one in (job, odd)]
    assert policy.allocate(0.0, calm, cluster, current)["x"].gpu_type == "fast"
    assert policy.allocate(0.0, [job], cluster, {"x": current["x"]})["x"].gpu_type == "fast"


@pytest.mark.parametrize("left", [None, 4000.0])
@pytest.mark.parametrize("name", ["gpualloc", "sia", "greedy", "las"])
def test_a_plan_planned_again_and_again_settles(name: str, left: float | None) -> None:
    jobs = [
        make_job(f"j{number}", exponent=0.5 + number / 20, age_s=600.0, progress_done=100.0, progress_left=left and left * (number + 1))
        for number in range(8)
    ]
    policy = policy_named(name)
    plan = policy.allocate(0.0, jobs, TWO_TYPES, {})
    for _ in range(3):
        plan = policy.allocate(60.0, jobs, TWO_TYPES, plan)
    assert policy.allocate(120.0, jobs, TWO_TYPES, plan) == plan


@pytest.mark.parametrize("left", [0.0, float("inf"), None])
def test_who_says_nothing_useful_of_its_work_is_no_shorter_for_it(left: float | None) -> None:
    """Nothing left, and still here: it gives way to one of two minutes."""
    cluster = make_cluster(a=("slow", 1))
    old = make_job("old", progress_done=1200.0, progress_left=left, restart_cost_s=10.0)
    new = make_job("new", progress_left=120.0, restart_cost_s=10.0)
    current = {"old": Allocation.of("slow", {"a": 1})}
    assert set(policy_named().allocate(0.0, [old, new], cluster, current)) == {"new"}
    assert set(policy_named().allocate(0.0, [old], cluster, {})) == {"old"}


def test_jobs_that_fit_nowhere_change_nothing_for_the_others() -> None:
    jobs = [make_job(f"j{number}", exponent=0.5 + number / 20, progress_left=1000.0 * 2**number) for number in range(8)]
    nowhere = [make_job(f"n{number}", gpu_types=["absent"], progress_left=100.0) for number in range(30)]
    plan = policy_named().allocate(0.0, jobs, TWO_TYPES, {})
    assert policy_named().allocate(0.0, [*jobs, *nowhere], TWO_TYPES, {}) == plan
    later = [replace(job, age_s=600.0, progress_done=1.0) for job in jobs[:3]]
    assert policy_named().allocate(60.0, [*later, *nowhere], TWO_TYPES, plan) == policy_named().allocate(60.0, later, TWO_TYPES, plan)


def test_a_heavy_job_goes_before_a_light_one() -> None:
    cluster = make_cluster(a=("slow", 1))
    jobs = [make_job("light", progress_left=1000.0), make_job("heavy", progress_left=1000.0, weight=5.0)]
    assert set(policy_named().allocate(0.0, jobs, cluster, {})) == {"heavy"}


def test_fifo_lets_the_head_block() -> None:
    cluster = make_cluster(a=("slow", 4))
    jobs = [
        make_job("runs", age_s=300.0, min_gpus=2, max_gpus=2),
        make_job("head", age_s=200.0, min_gpus=4, max_gpus=4),
        make_job("behind", age_s=100.0, min_gpus=1, max_gpus=1),
    ]
    assert set(policy_named("fifo").allocate(0.0, jobs, cluster, {})) == {"runs"}


def test_least_attained_service_lets_the_young_go_first() -> None:
    cluster = make_cluster(a=("slow", 1))
    jobs = [make_job("old", age_s=9e4, progress_done=8e4), make_job("young", age_s=60.0, progress_done=10.0)]
    assert set(policy_named("las").allocate(0.0, jobs, cluster, {"old": Allocation.of("slow", {"a": 1})})) == {"young"}


def test_max_min_gives_a_lagging_job_its_turn() -> None:
    cluster = make_cluster(a=("slow", 1))
    jobs = [make_job("served", age_s=600.0, progress_done=600.0), make_job("lagging", age_s=600.0, progress_done=10.0)]
    assert set(policy_named("max_min").allocate(0.0, jobs, cluster, {"served": Allocation.of("slow", {"a": 1})})) == {"lagging"}


def test_a_view_with_many_rates_at_once_is_asked_so() -> None:
    class View:
        job_id, min_gpus, max_gpus, gpu_types, age_s, num_restarts = "j", 1, 4, None, 0.0, 0
        restart_cost_s, progress_done, progress_left, weight = 30.0, 0.0, None, 1.0

        def rates(self, gpu_type: str, shapes: list[tuple[int, int]]) -> list[float]:
            return [float("nan") if gpus == 2 else float(gpus) for _, gpus in shapes]

        def rate(self, gpu_type: str, num_nodes: int, num_gpus: int) -> float | None:
            raise AssertionError("asked one by one")

    choices = choices_of([View()], make_cluster(a=("slow", 8)), {})
    assert dict(zip(choices.num_gpus.tolist(), choices.rates[0].tolist(), strict=True)) == {1: 1.0, 2: 0.0, 4: 4.0, 8: 0.0}


def test_shapes_are_powers_of_two_then_whole_nodes() -> None:
    assert shapes_of([8, 8, 8]) == [(1, 1), (1, 2), (1, 4), (1, 8), (2, 16), (3, 24)]
    assert shapes_of([6]) == [(1, 1), (1, 2), (1, 4), (1, 6)]
    assert shapes_of([]) == []
    assert len(shapes_of([8] * 1250)) < 40  # a large cluster's choices stay few


def test_a_job_of_three_gpus_or_of_twelve_finds_its_shape() -> None:
    cluster = make_cluster(a=("slow", 8), b=("slow", 8))
    jobs = [make_job("three", min_gpus=3, max_gpus=3), make_job("twelve", min_gpus=12, max_gpus=12)]
    plan = policy_named().allocate(0.0, jobs, cluster, {})
    assert {job_id: held.num_gpus for job_id, held in plan.items()} == {"three": 3, "twelve": 12}


def test_an_unknown_policy_is_named_with_what_there_is() -> None:
    with pytest.raises(UsageError, match="did you mean greedy"):
        policy_named("gredy")
    assert DEFAULT_POLICY == "gpualloc"
