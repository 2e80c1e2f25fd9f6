"""Small clusters, and jobs whose rates are a power of the number of GPUs times the speed of their type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from gpualloc.plan.protocol import Allocation, Cluster, Job, Node, Plan


def make_cluster(**nodes: tuple[str, int]) -> Cluster:
    """node_id -> (GPU type, GPUs)."""
    return Cluster(nodes=tuple(Node(node_id=name, gpu_type=kind, num_gpus=count) for name, (kind, count) in nodes.items()))


def make_job(job_id: str, *, speeds: Mapping[str, float] | None = None, exponent: float = 0.8, **attributes: Any) -> Job:
    speed_of = speeds or {"slow": 1.0, "fast": 3.0}

    def rate(gpu_type: str, num_nodes: int, num_gpus: int) -> float | None:
        speed = speed_of.get(gpu_type)
        return None if speed is None else speed * num_gpus**exponent * (0.8 if num_nodes > 1 else 1.0)

    return Job(job_id=job_id, rate_of=rate, **attributes)


def check_promises(plan: Plan, jobs: list[Job], cluster: Cluster) -> None:
    """No GPU twice, gangs on one type, counts and types respected, every rate above 0."""
    free = {node.node_id: node.num_gpus for node in cluster.nodes}
    type_of = {node.node_id: node.gpu_type for node in cluster.nodes}
    by_id = {job.job_id: job for job in jobs}
    for job_id, held in plan.items():
        job = by_id[job_id]
        assert job.min_gpus <= held.num_gpus <= job.max_gpus
        assert job.gpu_types is None or held.gpu_type in job.gpu_types
        assert job.rate(held.gpu_type, held.num_nodes, held.num_gpus)
        assert held.gpus_by_node == tuple(sorted(held.gpus_by_node))
        for node, count in held.gpus_by_node:
            assert count > 0
            assert type_of[node] == held.gpu_type
            free[node] -= count
    assert min(free.values(), default=0) >= 0


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Job], Cluster, dict[str, Allocation]]:
    """Jobs, a cluster of odd node sizes, and something of them running."""
    sizes = draw(st.lists(st.tuples(st.sampled_from(["slow", "fast"]), st.sampled_from([1, 2, 3, 4, 8])), min_size=1, max_size=5))
    cluster = Cluster(nodes=tuple(Node(node_id=f"n{place}", gpu_type=kind, num_gpus=size) for place, (kind, size) in enumerate(sizes)))
    jobs = []
    for number in range(draw(st.integers(0, 9))):
        low = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
        jobs.append(
            make_job(
                f"j{number}",
                exponent=draw(st.sampled_from([0.3, 0.7, 0.95])),
                speeds=draw(st.sampled_from([None, {"slow": 1.0}, {"slow": 2.0, "fast": 1.0}])),
                min_gpus=low,
                max_gpus=draw(st.sampled_from([low, low + 1, 64])),
                gpu_types=draw(st.sampled_from([None, None, ("fast",)])),
                age_s=float(draw(st.sampled_from([0, 60, 7200]))),
                num_restarts=draw(st.integers(0, 3)),
                restart_cost_s=float(draw(st.sampled_from([0, 30, 250]))),
                progress_done=float(draw(st.sampled_from([0, 100, 1e5]))),
                progress_left=draw(st.sampled_from([None, 0.0, 50.0, 1e5])),
                weight=draw(st.sampled_from([1.0, 4.0])),
                preemptible=draw(st.sampled_from([True, True, False])),
            )
        )
    current: dict[str, Allocation] = {}
    free = {node.node_id: node.num_gpus for node in cluster.nodes}
    for job in jobs:
        node = cluster.nodes[draw(st.integers(0, len(cluster.nodes) - 1))]
        is_allowed = (job.gpu_types is None or node.gpu_type in job.gpu_types) and job.rate(node.gpu_type, 1, job.min_gpus)
        if is_allowed and free[node.node_id] >= job.min_gpus and draw(st.booleans()):
            free[node.node_id] -= job.min_gpus
            current[job.job_id] = Allocation.of(node.gpu_type, {node.node_id: job.min_gpus})
    return jobs, cluster, current
