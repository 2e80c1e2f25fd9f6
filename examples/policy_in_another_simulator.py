"""gpualloc's policies inside a simulator of your own: it needs to tell a job's goodput and to count GPUs, nothing else.

    python examples/policy_in_another_simulator.py

The simulator below knows nothing of gpualloc: jobs, nodes and allocations are plain dicts, and `schedule` is any function from the time,
the jobs and what runs to what shall run. `as_schedule` is all that stands between the two: it shows each job as a `JobView`, the nodes as
a `Cluster`, and turns the plan back into dicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpualloc.plan.policies import policy_named
from gpualloc.plan.protocol import Allocation, Cluster, Job, Node, Policy

# --- the foreign simulator ---------------------------------------------------------------------------------------------------------------

NODES = {"old-1": ("t4", 4), "old-2": ("t4", 4), "new-1": ("a100", 8)}
SPEED = {"t4": 1.0, "a100": 4.0}
ROUND_S = 60
JOBS = [
    {"id": f"job-{number}", "arrival": 300 * number, "work": work, "scales": scales, "done": 0.0, "restarts": 0, "finished": None}
    for number, (work, scales) in enumerate([(40_000, 0.95), (3_000, 0.6), (90_000, 0.9), (2_000, 0.7), (8_000, 0.8), (1_000, 0.5)])
]


def goodput(job: dict[str, Any], kind: str, num_nodes: int, num_gpus: int) -> float:
    """Samples per second: each GPU adds less than the one before it, and the network costs a fifth."""
    return SPEED[kind] * num_gpus ** job["scales"] * (0.8 if num_nodes > 1 else 1.0)


def run(schedule: Callable[[float, list[dict[str, Any]], dict[str, Any]], dict[str, Any]], jobs: list[dict[str, Any]]) -> float:
    """Mean completion time in seconds."""
    now, running = 0.0, {}
    while any(job["finished"] is None for job in jobs):
        present = [job for job in jobs if job["arrival"] <= now and job["finished"] is None]
        wanted = schedule(now, present, running)
        for job in present:
            is_changed = wanted.get(job["id"]) != running.get(job["id"])
            held = wanted.get(job["id"])
            if held is None:
                continue
            if is_changed and job["done"] > 0:
                job["restarts"] += 1
            kind = NODES[next(iter(held))][0]
            speed = goodput(job, kind, len(held), sum(held.values()))
            job["done"] += speed * (ROUND_S - (30 if is_changed else 0))
            if job["done"] >= job["work"]:
                job["finished"] = now + ROUND_S
        done = {job["id"] for job in present if job["finished"] is not None}
        running = {name: held for name, held in wanted.items() if name not in done}
        now += ROUND_S
    return sum(job["finished"] - job["arrival"] for job in jobs) / len(jobs)


# --- what joins it to gpualloc -----------------------------------------------------------------------------------------------------------


def as_schedule(policy: Policy) -> Callable[[float, list[dict[str, Any]], dict[str, Any]], dict[str, Any]]:
    """A schedule of the simulator's kind out of a policy."""
    cluster = Cluster(nodes=tuple(Node(node_id=name, gpu_type=kind, num_gpus=count) for name, (kind, count) in NODES.items()))

    def schedule(now: float, jobs: list[dict[str, Any]], running: dict[str, Any]) -> dict[str, Any]:
        views = [
            Job(
                job_id=job["id"],
                rate_of=lambda kind, num_nodes, num_gpus, job=job: goodput(job, kind, num_nodes, num_gpus),
                age_s=now - job["arrival"],
                num_restarts=job["restarts"],
                restart_cost_s=30.0,
                progress_done=job["done"],
                progress_left=job["work"] - job["done"],  # None where your jobs don't say
            )
            for job in jobs
        ]
        current = {name: Allocation.of(NODES[next(iter(held))][0], held) for name, held in running.items()}
        plan = policy.allocate(now, views, cluster, current)
        return {name: dict(allocation.gpus_by_node) for name, allocation in plan.items()}

    return schedule


if __name__ == "__main__":
    for name in ("gpualloc", "sia", "fifo"):
        mean_s = run(as_schedule(policy_named(name)), [dict(job) for job in JOBS])
        print(f"{name}: mean completion time {mean_s / 60:.1f} min")
