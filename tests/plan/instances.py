"""Random planning problems, made the same for a seed."""

from __future__ import annotations

import random

from gpualloc.plan.problem import Choice, NodeGpus, Problem, Task
from gpualloc.plan.records import Objective


def random_problem(seed: int, *, num_tasks: int, objective: Objective = "mean_jct", deadline_share: float = 0.0) -> Problem:
    """Nodes of two types; tasks whose speed-up is that of Amdahl's law with a part of their own, on counts that are powers of two."""
    dice = random.Random(seed)
    nodes = [NodeGpus(name=f"a{n}", gpu_type="A100", num_gpus=dice.choice((2, 4))) for n in range(dice.choice((1, 2)))]
    nodes.append(NodeGpus(name="t0", gpu_type="T4", num_gpus=dice.choice((1, 2, 4))))
    largest = max(node.num_gpus for node in nodes)
    tasks = []
    for number in range(num_tasks):
        work_s, serial, weight = dice.uniform(600, 20_000), dice.uniform(0.02, 0.4), dice.choice((1.0, 1.0, 2.0))
        slower = dice.uniform(2.0, 5.0)
        choices = []
        latest_s = work_s * dice.uniform(1.5, 4.0) if dice.random() < deadline_share else float("inf")
        for gpu_type, factor, price in (("A100", 1.0, 3.0), ("T4", slower, 0.6)):
            count = 1
            while count <= largest:
                duration_s = work_s * factor * (serial + (1 - serial) / count)
                fits = any(node.gpu_type == gpu_type and node.num_gpus >= count for node in nodes)
                if fits and duration_s < latest_s:
                    money = price * count * duration_s / 3600
                    choices.append(
                        Choice(
                            gpu_type=gpu_type,
                            num_nodes=1,
                            num_gpus=count,
                            duration_s=duration_s,
                            tail_s=weight * duration_s,
                            money=money,
                            merit=weight / money,
                            latest_start_s=latest_s - duration_s,
                        )
                    )
                count *= 2
        tasks.append(Task(name=f"job{number}", weight=weight, choices=tuple(choices)))
    return Problem(tasks=tuple(tasks), nodes=tuple(nodes), objective=objective)
