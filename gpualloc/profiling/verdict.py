"""What bounds the training: a pure function of all ranks' profiles, with its thresholds.

Four kinds are time in which nothing is computed; each counts what all ranks have of it, the least of them, since what only some ranks have
the others wait for, which is imbalance. The largest that passes its threshold names the verdict. Where none does, the device computes, and
the verdict says what that is bound by: arithmetic or memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.profiling.advice import describe
from gpualloc.profiling.records import RankProfile, Verdict

INPUT, LAUNCH, COMPUTE, MEMORY = "input-bound", "launch-bound", "compute-bound", "memory-bound"
COMMUNICATION, IMBALANCE = "communication-bound", "imbalance"
KINDS = (INPUT, LAUNCH, COMPUTE, MEMORY, COMMUNICATION, IMBALANCE)

# Shares of the step from which a kind is worth acting on: a step of 1 without a share of s is 1 / (1 - s) times as fast.
THRESHOLDS = {
    INPUT: 0.15,  # 1.18x, for a change of one argument
    COMMUNICATION: 0.20,  # 1.25x at best: a hook or accumulation removes part of it
    IMBALANCE: 0.10,  # 1.11x; ranks of equal work differ by 2 to 5 % by chance
    LAUNCH: 0.30,  # 1.43x; gaps are the least certain figure, for they hold what the profiler adds
}
# GPM's share of DRAM's peak while the GPU computes. A copy reaches 0.9 of it, a large matrix product 0.2 to 0.4.
MIN_DRAM_SHARE = 0.6
MIN_MEMORY_SHARE = 0.5  # of the roofline time: more than half of it moves bytes
MAX_MFU_MEMORY_BOUND = 0.5  # above it the arithmetic is the bound, however busy the memory


def judge(ranks: Sequence[RankProfile]) -> Verdict:
    """The verdict on a job, from all its ranks (at least one)."""
    shares = {
        INPUT: min((rank.times.input_wait_s + rank.times.host_to_device_s) / rank.times.step_time_s for rank in ranks),
        COMMUNICATION: min(rank.times.exposed_comm_s / rank.times.step_time_s for rank in ranks),
        IMBALANCE: imbalance_share(ranks),
        LAUNCH: min(rank.times.launch_gap_s / rank.times.step_time_s for rank in ranks),
    }
    passing = [kind for kind, share in shares.items() if share >= THRESHOLDS[kind]]
    kind = max(passing, key=lambda each: shares[each]) if passing else _bound_of_computing(ranks)
    share = shares[kind] if kind in shares else _computing_share(ranks)
    evidence, next_step, sentence = describe(kind, share, ranks)
    return Verdict(kind=kind, share=share, sentence=sentence, evidence=evidence, next_step=next_step, shares=shares)


def imbalance_share(ranks: Sequence[RankProfile]) -> float:
    """How much shorter the step would be if all ranks had equal work: (longest - mean own time) / step, own meaning all but waiting for
    others in communication.
    """
    own_s = [rank.times.step_time_s - rank.times.exposed_comm_s for rank in ranks]
    mean_step_s = sum(rank.times.step_time_s for rank in ranks) / len(ranks)
    return (max(own_s) - sum(own_s) / len(own_s)) / mean_step_s


def _computing_share(ranks: Sequence[RankProfile]) -> float:
    return sum(rank.times.computing_s / rank.times.step_time_s for rank in ranks) / len(ranks)


def _bound_of_computing(ranks: Sequence[RankProfile]) -> str:
    """By the DRAM's counters where they are high, else by the roofline, else by the names of the kernels."""
    slowest = max(ranks, key=lambda rank: rank.times.computing_s)
    used = slowest.utilisation
    mfu_computing = 0.0 if slowest.mfu is None else slowest.mfu * slowest.step_time_s / slowest.times.computing_s
    if mfu_computing > MAX_MFU_MEMORY_BOUND:
        return COMPUTE
    if used is not None and used.dram is not None and slowest.gpu_busy and used.dram / slowest.gpu_busy >= MIN_DRAM_SHARE:
        return MEMORY
    if slowest.costs is not None and slowest.costs.memory_share is not None:
        return MEMORY if slowest.costs.memory_share > MIN_MEMORY_SHARE else COMPUTE
    return COMPUTE if slowest.times.matmul_s >= slowest.times.computing_s / 2 else MEMORY
