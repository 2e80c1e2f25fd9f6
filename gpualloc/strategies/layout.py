"""Which processes a case has and which data each of them reads.

A *data rank* is a part of the job that reads samples no other part reads: a rank of ddp, but all stages of a pipeline together.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpualloc.records import BenchCase

ONE_PROCESS = ("single", "data_parallel")  # no process group
WHOLE_MODEL = frozenset({"single", "data_parallel", "ddp", "ddp_full_data"})  # every rank has all parameters
HYBRIDS = ("hsdp", "pipeline_ddp")
NUM_REPLICAS = 2  # of a hybrid, each spread over half of the ranks
MIN_HYBRID_WORLD_SIZE = 2 * NUM_REPLICAS

_MAX_MICROBATCHES_PER_STAGE = 4  # GPipe (Huang et al. 2019, arXiv:1811.06965, 2.1): the bubble is negligible from 4 a stage


def num_processes(case: BenchCase) -> int:
    """Processes to start."""
    return 1 if case.strategy in ONE_PROCESS or case.is_rehearsed else case.world_size


def data_ranks(case: BenchCase) -> int:
    """How many times `per_device_batch_size` different samples a step takes."""
    if case.strategy in ("ddp_full_data", "tensor_parallel", "pipeline"):
        return 1
    return NUM_REPLICAS if case.strategy == "pipeline_ddp" else case.world_size


def global_batch_size(case: BenchCase) -> int:
    """Different samples that an optimizer step takes over all ranks."""
    return data_ranks(case) * case.per_device_batch_size * case.grad_accum_steps


def num_copies(case: BenchCase) -> int:
    """How many copies of the model there are over all ranks."""
    if case.strategy in WHOLE_MODEL:
        return case.world_size
    return NUM_REPLICAS if case.strategy in HYBRIDS else 1


def num_shards(case: BenchCase) -> int:
    """Ranks among which one copy of the model is divided."""
    return 1 if case.strategy in WHOLE_MODEL else max(1, case.world_size // num_copies(case))


def data_of(case: BenchCase, rank: int) -> tuple[BenchCase, int]:
    """(case, rank) to open batches with: of a job of data ranks alone, with as many readers as this process may have."""
    if case.strategy == "data_parallel":  # its process reads for all replicas
        return dataclasses.replace(case, world_size=1, per_device_batch_size=case.per_device_batch_size * case.world_size), 0
    if data_ranks(case) == case.world_size:
        return case, rank
    from gpualloc.workloads.batches import reads_images
    from gpualloc.workloads.images import choose_num_workers

    num_workers = choose_num_workers(case) if reads_images(case) else case.num_workers  # all processes read and share the cores
    data_rank = rank * data_ranks(case) // case.world_size
    return dataclasses.replace(case, world_size=data_ranks(case), num_workers=num_workers), data_rank


def num_stages(case: BenchCase) -> int:
    """Stages of a pipeline: one a rank of each replica."""
    return case.world_size // data_ranks(case)


def num_microbatches(case: BenchCase) -> int | None:
    """Equal micro-batches a pipeline cuts a batch into: as many as pay off and divide it; None where no number does.

    One stage's turn at the least, and images not one by one, which batch normalisation needs.
    """
    smallest = 2 if case.workload == "image" else 1
    for per_stage in (_MAX_MICROBATCHES_PER_STAGE, 2, 1):
        size, rest = divmod(case.per_device_batch_size, per_stage * num_stages(case))
        if rest == 0 and size >= smallest:
            return per_stage * num_stages(case)
    return None
