"""Runs a function as N ranks of a real process group, in fresh processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

# A server that has imported torch once forks a rank in milliseconds; it never runs a parallel region or touches CUDA itself.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch._dynamo", "torch.optim", "pytest", "gpualloc.comm"])


def run_ranks(target: Callable[..., Any], world_size: int, *args: Any, backend: str = "gloo", timeout_s: float = 120) -> list[Any]:
    """What `target(rank, world_size, *args)` returned on each rank.

    `target` runs inside an initialised default process group, one thread a rank on the CPU; with "nccl" all ranks share
    device 0 over TCP. It must be importable (a module's function) and return something picklable.

    Raises:
        AssertionError: a rank raised or did not end in time; with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_run_rank, args=(sender, target, rank, world_size, args, backend, f"{folder}/rendezvous", timeout_s), daemon=True
            )
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list[Connection], deadline_s: float) -> list[Any]:
    results = []
    for rank, pipe in enumerate(pipes):
        assert pipe.poll(max(0, deadline_s - time.monotonic())), f"rank {rank} did not end in time"
        try:
            ok, value = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
        except EOFError:
            raise AssertionError(f"rank {rank} died without a word") from None
        assert ok, f"rank {rank}:\n{value}"
        results.append(value)
    return results


def _run_rank(
    pipe: Connection,
    target: Callable[..., Any],
    rank: int,
    world_size: int,
    args: tuple[Any, ...],
    backend: str,
    rendezvous: str,
    timeout_s: float,
) -> None:
    if backend == "nccl":
        # NCCL refuses two ranks on one card unless they seem to be different hosts.
        os.environ.update(NCCL_HOSTID=f"rank{rank}", NCCL_SOCKET_IFNAME="lo", NCCL_IB_DISABLE="1")
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        if backend == "nccl":
            torch.cuda.set_device(0)
        dist.init_process_group(
            backend, init_method=Path(rendezvous).as_uri(), rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
        )
        outcome = (True, target(rank, world_size, *args))
        dist.destroy_process_group()
    except BaseException:
        outcome = (False, traceback.format_exc())
    saved = io.BytesIO()
    torch.save(outcome, saved)  # not as pickled tensors: those are shared memory, gone with this process
    pipe.send_bytes(saved.getvalue())
    pipe.close()
