"""The simulation against figures computed by hand, and under failures and errors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.plan.policies import policy_named
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan
from gpualloc.plan.simulation.clusters import load_cluster
from gpualloc.plan.simulation.engine import simulate
from gpualloc.plan.simulation.generators import generate_trace
from gpualloc.plan.simulation.job_types import MIXES, assumed_job_types
from gpualloc.plan.simulation.metrics import fairness_ratios, summarise
from gpualloc.plan.simulation.records import SimulationOptions, SimulationRun
from gpualloc.plan.simulation.timeline import timeline_data, utilisation_lines
from gpualloc.plan.simulation.trace import TraceJob
from tests.plan.made_jobs import make_cluster
from tests.plan.simulation.made_types import linear_type

TYPES = {"plain": linear_type()}
TWO_GPUS = make_cluster(n=("t4", 2))
TRUTH = SimulationOptions(work_error=0.0, rate_error=0.0)


class Script:
    """A policy that reads its plans from a table: time -> job -> GPUs of node n; between entries the last one stays."""

    name = "script"

    def __init__(self, table: Mapping[float, Mapping[str, int]]) -> None:
        self._table = table

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        wanted = self._table[max(at for at in self._table if at <= now_s)]
        present = {job.job_id for job in jobs}
        return {name: Allocation.of("t4", {"n": count}) for name, count in wanted.items() if name in present and count}


def three_jobs() -> tuple[TraceJob, ...]:
    return tuple(TraceJob(job_id=name, submit_s=at, job_type="plain", max_gpus=2) for name, at in (("a", 0.0), ("b", 30.0), ("c", 130.0)))


def hand_computed() -> SimulationRun:
    """a: 2 GPUs from 0 (starts until 10), at 120 shrinks to 1 (restart until 130) when b starts on the other; c waits for a's GPU."""
    table = {0: {"a": 2}, 120: {"a": 1, "b": 1}, 960: {"b": 1, "c": 1}, 1200: {"c": 2}}
    return simulate(Script(table), three_jobs(), TYPES, TWO_GPUS, TRUTH)


def test_three_jobs_by_hand() -> None:
    run = hand_computed()
    a, b, c = run.jobs
    # a: 110 s x 2 GPUs = 220, restart 10 s, the other 780 from 130 on one GPU: at 910
    assert (a.start_s, a.end_s, a.num_restarts) == (0.0, 910.0, 1)
    # b: from 120, starting until 130, 1000 s on one GPU: at 1130
    assert (b.start_s, b.end_s, b.num_restarts) == (120.0, 1130.0, 0)
    # c: from 960, 230 by 1200, restart 10 s, 770 at 2 a second: at 1595
    assert (c.start_s, c.end_s, c.num_restarts) == (960.0, 1595.0, 1)
    assert a.gpu_seconds == 120 * 2 + 790
    assert c.gpu_seconds == 240 + 395 * 2
    assert run.gpu_seconds_by_type == {"t4": a.gpu_seconds + b.gpu_seconds + c.gpu_seconds}


def test_figures_by_hand() -> None:
    run, trace = hand_computed(), three_jobs()
    summary = summarise(run, trace, TYPES, TWO_GPUS, {"t4": 3.6})
    assert summary.mean_jct_h == pytest.approx((910 + 1100 + 1465) / 3 / 3600)
    assert summary.makespan_h == pytest.approx(1595 / 3600)
    assert summary.utilisation == pytest.approx(sum(run.gpu_seconds_by_type.values()) / (2 * 1595))
    assert summary.cost == pytest.approx(sum(run.gpu_seconds_by_type.values()) * 0.001)
    assert summarise(run, trace, TYPES, TWO_GPUS).cost is None
    # a shared with b from the round of 60 s on and with c from that of 180 s: (60 x 1 + 120 x 2 + 730 x 3) / 910 jobs: one GPU of two
    assert run.jobs[0].mean_contention == pytest.approx((60 + 120 * 2 + 730 * 3) / 910)
    assert fairness_ratios(run, trace, TYPES, TWO_GPUS)[0] == pytest.approx(910 / 1000)


def test_the_timeline_is_what_was_held() -> None:
    run = hand_computed()
    spans = [(span["job_id"], span["start_s"], span["end_s"], span["gpus_by_node"]) for span in timeline_data(run)["spans"]]
    assert spans == [
        ("a", 0.0, 120.0, {"n": 2}),
        ("a", 120.0, 910.0, {"n": 1}),
        ("b", 120.0, 1130.0, {"n": 1}),
        ("c", 960.0, 1200.0, {"n": 1}),
        ("c", 1200.0, 1595.0, {"n": 2}),
    ]
    (line,) = utilisation_lines(run, TWO_GPUS, 11)
    # slices of 145 s: all in use until a ends at 910, one GPU until 960, both until b ends at 1130, one until 1200, both to the end
    assert line == "t4 |@@@@@@#%%@@|"


def test_a_failure_stops_the_jobs_of_the_node_and_loses_what_was_not_saved() -> None:
    options = replace(TRUTH, mean_hours_between_failures=0.5, repair_hours=0.1, checkpoint_s=200.0, seed=3)
    cluster = make_cluster(m=("t4", 1), n=("t4", 1))
    trace = tuple(TraceJob(job_id=f"j{number}", submit_s=0.0, job_type="plain", max_gpus=1, work_scale=5.0) for number in range(2))
    run = simulate(policy_named("greedy"), trace, TYPES, cluster, options)
    calm = simulate(policy_named("greedy"), trace, TYPES, cluster, TRUTH)
    assert run.failures
    assert sum(job.num_restarts for job in run.jobs) >= 1
    assert sum(job.end_s for job in run.jobs) > sum(job.end_s for job in calm.jobs)
    for at, node in run.failures:
        back_s = at + 0.1 * 3600
        held = [span for span in run.spans if any(name == node for name, _ in span.allocation.gpus_by_node)]
        assert not any(span.start_s < back_s - 60 and span.end_s > at for span in held)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    cluster, _ = load_cluster("mixed64")
    types = assumed_job_types()
    trace = generate_trace(num_jobs=12, hours=0.5, arrivals="bursty", mix={"cifar10": 0.8, "bert": 0.2}, seed=5)
    options = SimulationOptions(work_error=0.3, rate_error=0.2, mean_hours_between_failures=20.0, seed=1)
    first, again, other = (
        simulate(policy_named(), trace, types, cluster, chosen) for chosen in (options, options, replace(options, seed=2))
    )
    assert (first.jobs, first.spans, first.failures) == (again.jobs, again.spans, again.failures)
    assert first.jobs != other.jobs


def test_jobs_that_may_only_double_begin_with_one_gpu() -> None:
    trace = (TraceJob(job_id="j", submit_s=0.0, job_type="plain", work_scale=4.0),)
    run = simulate(policy_named("greedy"), trace, TYPES, make_cluster(n=("t4", 8)), replace(TRUTH, max_growth=2.0))
    counts = [span.allocation.num_gpus for span in run.spans]
    assert counts[0] == 1
    assert all(after <= 2 * before for before, after in itertools.pairwise(counts))


@pytest.mark.parametrize(("error", "left"), [(None, {None}), (0.0, {1000.0})])
def test_what_jobs_declare(error: float | None, left: set[float | None]) -> None:
    seen = set()

    class Spy(Script):
        def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
            if now_s == 0:
                seen.update(job.progress_left for job in jobs)
            return super().allocate(now_s, jobs, cluster, current)

    simulate(Spy({0: {"a": 2}}), three_jobs()[:1], TYPES, TWO_GPUS, replace(TRUTH, work_error=error))
    assert seen == left


def test_an_error_in_the_declared_work_stays_within_its_share() -> None:
    factors = []

    class Spy(Script):
        def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
            factors.extend((job.progress_left or 0.0) / (1000.0 - job.progress_done) for job in jobs)
            return super().allocate(now_s, jobs, cluster, current)

    for seed in range(40):
        simulate(Spy({0: {"a": 2}}), three_jobs()[:1], TYPES, TWO_GPUS, replace(TRUTH, work_error=0.3, seed=seed))
    assert 0.7 <= min(factors) < 0.85 < 1.15 < max(factors) <= 1.3


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"a": Allocation.of("t4", {"n": 3})}, "hands out 1 GPUs more than node n"),
        ({"x": Allocation.of("t4", {"n": 1})}, "plans for x, which is not waiting"),
        ({"a": Allocation.of("t4", {"m": 1})}, "node m, which is not there"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: dict[str, Allocation], words: str) -> None:
    class Wrong(Script):
        def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
            return plan

    with pytest.raises(GpuallocError, match=words):
        simulate(Wrong({}), three_jobs(), TYPES, TWO_GPUS, TRUTH)


def test_jobs_that_never_run_end_the_simulation() -> None:
    trace = (TraceJob(job_id="a", submit_s=0.0, job_type="plain", gpu_types=("h100",)),)
    with pytest.raises(GpuallocError, match="waiting on an idle cluster, such as a"):
        simulate(policy_named(), trace, TYPES, TWO_GPUS, TRUTH)


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"round_s": 0.0}, {"work_error": 1.0}, {"mean_hours_between_failures": -1.0}):
        with pytest.raises(UsageError):
            SimulationOptions(**wrong)  # type: ignore[arg-type]


def test_made_traces() -> None:
    poisson, bursty = (
        generate_trace(num_jobs=400, hours=8.0, arrivals=kind, mix=MIXES["philly"], seed=2)  # type: ignore[arg-type]
        for kind in ("poisson", "bursty")
    )
    gaps = [np.diff([job.submit_s for job in trace]) for trace in (poisson, bursty)]
    assert np.std(gaps[1]) / np.mean(gaps[1]) > 1.3 * np.std(gaps[0]) / np.mean(
        gaps[0]
    )  # bursts: more uneven than Poisson, which is near 1
    assert max(job.submit_s for job in bursty) <= 8 * 3600
    assert 0.7 < np.mean([job.job_type == "cifar10" for job in poisson]) < 0.86
    assert len({job.job_id for job in poisson}) == 400


@pytest.mark.parametrize("work_error", [0.3, None])
def test_jobs_of_days_that_are_alike_do_not_displace_one_another_for_ever(work_error: float | None) -> None:
    """They share 64 GPUs of three types; each could always be a little better off where another one runs."""
    trace = [TraceJob(job_id=f"j{number:02}", submit_s=60.0 * number, job_type="imagenet") for number in range(13)]
    cluster, _ = load_cluster("mixed64")
    run = simulate(policy_named(), trace, assumed_job_types(), cluster, SimulationOptions(work_error=work_error, rate_error=0.1, seed=0))
    restarting_s = sum(job.num_restarts for job in run.jobs) * assumed_job_types()["imagenet"].training.restart_cost_s
    assert restarting_s < 0.12 * sum(job.jct_s for job in run.jobs)
