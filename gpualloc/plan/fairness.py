"""Finish-time fairness as Mahajan et al. 2020 define it (Themis, NSDI, 3.1): rho = planned finish / finish on one's own share.

The share of n workloads is 1/n of the GPUs of each type that a workload may use. A share of less than its smallest gang counts as that
gang for as much of the time: below 1 is better than sharing equally, and a workload with a rho of 2 takes twice as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpualloc.plan.problem import Choice, NodeGpus


def finish_time_fairness(
    choices: Mapping[str, Sequence[Choice]], finish_s: Mapping[str, float], nodes: Sequence[NodeGpus]
) -> dict[str, float]:
    """Workload -> rho, of those that finish and have something left to do."""
    result = {}
    for name, finish in finish_s.items():
        alone = []
        for choice in choices[name]:
            share = sum(node.num_gpus for node in nodes if node.gpu_type == choice.gpu_type) / len(choices)
            if share > 0:
                alone.append(choice.duration_s * max(1.0, choice.num_gpus / share))
        if alone and min(alone) > 0:
            result[name] = finish / min(alone)
    return result
