"""One rank of one case, in a process of its own.

On a CPU every rank gets an equal share of the cores, of which there are at least two, and as many threads: a single process
takes the same share as one of two ranks, so that the comparison is between equals.
"""

from __future__ import annotations

import datetime
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gpualloc.bench import rank_files
from gpualloc.records import BenchCase
from gpualloc.strategies import ONE_PROCESS, num_processes

if TYPE_CHECKING:
    import torch

_MIN_SHARES = 2  # of the cores
_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "alloc_failed")  # CUDA and NCCL, torch's CPU allocator, cuBLAS and cuDNN


def main(folder: Path, rank: int) -> int:
    """Runs the rank and leaves its report or its failure in `folder`. Returns the exit code."""
    order = rank_files.read_order(folder)
    return run_guarded(folder, rank, lambda: _run(folder, rank, order))


def run_guarded(folder: Path, rank: int, body: Callable[[], None]) -> int:
    """Runs `body`; an error is left in `folder`. Returns the exit code."""
    try:
        body()
    except BaseException as error:
        time_s = time.monotonic()
        kind = "oom" if _is_out_of_memory(error) else "failed"
        message = rank_files.one_line(f"{type(error).__name__}: {error}")
        rank_files.write_failure(folder, rank, rank_files.RankFailure(kind=kind, message=message, time_s=time_s))
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def joined_ranks(folder: Path, rank: int, case: BenchCase, *, timeout_s: float) -> Iterator[torch.device]:
    """This rank's share of the cores, its device, and, unless the strategy is "single", the default process group of all ranks."""
    num_threads = _claim_cores(case, rank)  # before torch starts its threads
    import torch
    import torch.distributed as dist

    torch.set_num_threads(num_threads)
    device = _claim_device(case, rank)
    with _rehearsed(case) if case.is_rehearsed else nullcontext():
        if case.strategy not in ONE_PROCESS:
            dist.init_process_group(
                "nccl" if case.device == "cuda" else "gloo",
                init_method=f"file://{folder / 'rendezvous'}",  # no port that could be in use
                rank=rank,
                world_size=case.world_size,
                timeout=datetime.timedelta(seconds=timeout_s),
                device_id=device if case.device == "cuda" else None,
            )
        yield device
        if dist.is_initialized():
            dist.destroy_process_group()


def _rehearsed(case: BenchCase) -> AbstractContextManager[None]:
    from gpualloc.rehearsal import Rehearsal, rehearsed

    assert case.gpus_per_node is not None
    return rehearsed(Rehearsal(world_size=case.world_size, gpus_per_node=case.gpus_per_node, link=case.link, network=case.network))


def _run(folder: Path, rank: int, order: rank_files.CaseOrder) -> None:
    with joined_ranks(folder, rank, order.case, timeout_s=order.timeout_s) as device:
        from gpualloc.bench.measure import measure_rank

        rank_files.write_report(folder, rank, measure_rank(order.case, rank=rank, device=device, ci_target=order.ci_target))


def _claim_cores(case: BenchCase, rank: int) -> int:
    """Pins a CPU rank to its share of the cores, where there are enough. Returns the number of threads to compute with."""
    cores = sorted(os.sched_getaffinity(0))
    num_shares = max(_MIN_SHARES, num_processes(case))
    num_threads = max(1, len(cores) // num_shares)
    if case.device == "cpu" and len(cores) >= num_shares:
        os.sched_setaffinity(0, cores[rank * num_threads : (rank + 1) * num_threads])
    return num_threads


def _claim_device(case: BenchCase, rank: int) -> torch.device:
    import torch

    if case.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", rank // case.ranks_per_gpu)
    torch.cuda.set_device(device)
    return device


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS)
