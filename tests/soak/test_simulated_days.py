"""Two days of arrivals on 64 GPUs whose nodes fail, with errors in rates and declared work, under every policy."""

from __future__ import annotations

from collections import defaultdict

import pytest

from gpualloc.plan.policies import POLICIES, policy_named
from gpualloc.plan.simulation.clusters import load_cluster
from gpualloc.plan.simulation.engine import simulate
from gpualloc.plan.simulation.generators import generate_trace
from gpualloc.plan.simulation.job_types import MIXES, assumed_job_types
from gpualloc.plan.simulation.records import SimulationOptions

OPTIONS = SimulationOptions(work_error=0.3, rate_error=0.2, mean_hours_between_failures=24.0, seed=11)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", POLICIES)
def test_two_days_of_arrivals_with_failures(name: str) -> None:
    cluster, _ = load_cluster("mixed64")
    trace = generate_trace(num_jobs=480, hours=48.0, arrivals="bursty", mix=MIXES["philly"], seed=11)
    run = simulate(policy_named(name), trace, assumed_job_types(), cluster, OPTIONS)
    assert [job.job_id for job in run.jobs] == [job.job_id for job in trace]  # every job ends, once
    assert all(job.submit_s <= job.start_s < job.end_s for job in run.jobs)
    assert len(run.failures) >= len(cluster.nodes)  # one a day of each node is expected
    assert sum(job.num_restarts for job in run.jobs) > 0
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    seconds = 0.0
    for span in run.spans:
        seconds += (span.end_s - span.start_s) * span.allocation.num_gpus
        for node, count in span.allocation.gpus_by_node:
            changes[node] += [(span.start_s, count), (span.end_s, -count)]
    gpus = {node.node_id: node.num_gpus for node in cluster.nodes}
    for node, moves in changes.items():
        held = 0
        for _, count in sorted(moves):  # at one moment what is given back comes first
            held += count
            assert 0 <= held <= gpus[node], node
        assert held == 0
    assert sum(run.gpu_seconds_by_type.values()) == pytest.approx(seconds)
