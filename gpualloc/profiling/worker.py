"""One rank of a built-in workload under the recorder, in a process of its own, as `gpualloc.bench.worker`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpualloc.bench import rank_files, worker
from gpualloc.profiling.messages import ProfileOrder, progress_file, read_order, trace_file
from gpualloc.strategies import num_processes

if TYPE_CHECKING:
    import torch

    from gpualloc.comm import HookStats
    from gpualloc.profiling.records import RankProfile
    from gpualloc.strategies.wrapped import Batch


def main(folder: Path, rank: int) -> int:
    """Runs the rank and leaves its report or its failure in `folder`. Returns the exit code."""
    order = read_order(folder)
    return worker.run_guarded(folder, rank, lambda: _run(folder, rank, order))


def _run(folder: Path, rank: int, order: ProfileOrder) -> None:
    with worker.joined_ranks(folder, rank, order.case, timeout_s=order.timeout_s) as device:
        rank_files.write_report(folder, rank, _profile_rank(folder, rank, order, device))


def _profile_rank(folder: Path, rank: int, order: ProfileOrder, device: torch.device) -> RankProfile:
    from gpualloc import strategies
    from gpualloc.bench.measure import Trainer
    from gpualloc.profiling.analysis import analyse
    from gpualloc.profiling.recorder import Recorder, TrainingStopped
    from gpualloc.workloads import open_batches

    def say(text: str) -> None:
        if rank == 0:
            with progress_file(folder).open("a") as progress:
                print(text, file=progress)

    case = order.case
    trainer = Trainer(case, rank=rank, device=device)
    data_case, data_rank = strategies.data_of(case, rank)
    pin_memory = device.type == "cuda" if case.pin_memory is None else case.pin_memory
    batches = _Announced(open_batches(data_case, rank=data_rank, pin_memory=pin_memory))
    say(f"warming up for {case.num_warmup_steps} steps")
    trainer.warm_up(batches)
    notes: tuple[str, ...] = (
        ("operators are not counted: the replicas run them in threads of their own",) if case.strategy == "data_parallel" else ()
    )
    recorder = Recorder(num_warmup_steps=1, num_steps=case.num_steps, trace_path=trace_file(Path(order.trace_folder), rank), say=say)
    with recorder:
        try:
            while True:
                trainer.step(batches)
        except TrainingStopped:
            pass
        except RuntimeError as error:  # of the counting alone: some operators refuse to be watched
            if not recorder.is_traced:
                raise
            notes += (f"operators were not counted: {rank_files.one_line(str(error))}",)
    if case.strategy == "data_parallel":
        recorder.counter = None  # it has the first replica's operators alone
    world_size = num_processes(case)
    profile = analyse(
        recorder,
        rank=rank,
        world_size=world_size,
        num_local_ranks=world_size if case.device == "cuda" else 1,  # a CPU rank has its share already
        notes=notes,
    )
    handle = trainer.wrapped.handle
    return profile if handle is None else _with_hook_times(profile, handle.stats())


def _with_hook_times(profile: RankProfile, stats: HookStats) -> RankProfile:
    """On a CPU gpualloc's hook carries 16 and 8 bits in a thread of its own, which the trace does not show: its clock takes the place."""
    times = profile.times
    if times.exposed_comm_s or times.hidden_comm_s or not stats.exposed_comm_s or stats.hidden_comm_s is None:
        return profile
    return dataclasses.replace(
        profile,
        times=times.with_communication(exposed_s=stats.exposed_comm_s, hidden_s=stats.hidden_comm_s),
        notes=(*profile.notes, "communication is as the hook timed it in its last timed step, which the trace does not show"),
    )


class _Announced:
    """Batches, the wait for each of which is recorded as waiting for input."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        from torch.autograd.profiler import record_function

        from gpualloc.profiling.trace import INPUT_RANGE

        with record_function(INPUT_RANGE):
            return next(self._batches)
