"""One rank of compare_hooks.py, real or rehearsed: all hooks of one model in one process group, in turns.

Each hook has a copy of the model of its own, with the same weights and the same batches. A round is one block of steps per hook, and
one of steps without synchronisation, which is the compute time; the next round begins with another hook. A block starts with steps
that are not timed, so that caches and links are in the state of a long run.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.compared_hooks import attach, ddp_options
from benchmarks.compared_models import COMPARED_MODELS, ComparedModel
from gpualloc.bench import precision, rank_files, worker
from gpualloc.rehearsal import Rehearsal, rehearsed
from gpualloc.workloads.training import compute_loss

COMPUTE = "compute"  # takes its turn as a hook does
_NUM_BATCHES = 4
_LEARNING_RATE = 0.01  # plain SGD: no optimiser state, so that many copies fit a GPU
_DECIDED_EVERY_STEPS = 5
_MIN_WARMUP_STEPS = 4  # DDP rebuilds its buckets in step 2, PowerSGD begins in step 3


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every rank is told."""

    model: str
    hooks: list[str]
    backend: str  # "gloo" or "nccl"
    world_size: int
    ranks_per_gpu: int
    interface: str | None  # whose sent bytes are counted; None where others use it too
    num_rounds: int
    num_steps: int  # timed steps of a block
    num_settle_steps: int  # untimed ones before them
    num_warmup_steps: int
    max_warmup_steps: int  # for a hook that makes up its mind
    one_at_a_time: bool
    timeout_s: float  # of one collective
    rehearsal: dict[str, Any] | None = None  # fields of gpualloc.rehearsal.Rehearsal: this process is rank 0 of ranks that do not exist


@dataclass(kw_only=True)
class HookFigures:
    """What one hook gave. Times and bytes are those of the slowest rank, or of the one that sent most."""

    skip_reason: str | None = None
    block_step_times_s: list[float] = dataclasses.field(default_factory=list)  # per round: time of a block / steps
    num_warmup_steps: int = 0
    wire_bytes_per_step: float | None = None  # gradient bytes that a rank hands to all-reduce
    link_bytes_per_step: float | None = None  # what its interface sent, headers and acknowledgements with it
    peak_memory_bytes: int | None = None  # allocated on the GPU; only where hooks run one at a time
    loss_end: float | None = None  # of rank 0, last step
    stats: dict[str, Any] | None = None
    explanation: str | None = None  # of a hook that decides


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    hooks: dict[str, HookFigures]  # with COMPUTE among them


def write_order(folder: Path, order: Order) -> None:
    (folder / "order.json").write_text(json.dumps(dataclasses.asdict(order)))


def read_report(folder: Path) -> ComparisonReport:
    report = json.loads(rank_files.report_file(folder, 0).read_text())
    return ComparisonReport(hooks={hook: HookFigures(**figures) for hook, figures in report["hooks"].items()})


def read_turn(folder: Path, rank: int) -> str:
    """The hook whose turn it was last on this rank; "" before the first."""
    file = folder / f"rank{rank}.turn"
    return file.read_text() if file.exists() else ""


def main(folder: Path, rank: int) -> int:
    """Runs the rank and leaves its report or its failure in `folder`. Returns the exit code."""
    order = Order(**json.loads((folder / "order.json").read_text()))
    return worker.run_guarded(folder, rank, lambda: _run(folder, rank, order))


def _run(folder: Path, rank: int, order: Order) -> None:
    device = torch.device("cpu")
    if order.backend == "gloo":
        torch.set_num_threads(1)
    else:
        device = torch.device("cuda", rank // order.ranks_per_gpu)
        torch.cuda.set_device(device)
    with rehearsed(Rehearsal(**order.rehearsal)) if order.rehearsal is not None else nullcontext():
        dist.init_process_group(
            order.backend,
            init_method=(folder / "rendezvous").as_uri(),
            rank=0 if order.rehearsal is not None else rank,
            world_size=order.world_size,
            timeout=timedelta(seconds=order.timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
        figures = _compare(order, device, lambda hook: (folder / f"rank{rank}.turn").write_text(hook))
        rank_files.write_report(folder, rank, ComparisonReport(hooks=figures))
        dist.destroy_process_group()


def _compare(order: Order, device: torch.device, note_turn: Callable[[str], Any]) -> dict[str, HookFigures]:
    model = COMPARED_MODELS[order.model]
    generator = torch.Generator().manual_seed(dist.get_rank())  # every rank its own data
    batches = [tuple(part.to(device) for part in model.make_batch(generator)) for _ in range(_NUM_BATCHES)]
    figures = {name: HookFigures() for name in (COMPUTE, *order.hooks)}
    for names in [[name] for name in figures] if order.one_at_a_time else [list(figures)]:
        contenders = []
        for name in names:
            note_turn(name)
            contender = _Contender(name, figures[name], model, batches, order, device)
            if figures[name].skip_reason is None:
                contender.warm_up()
                contenders.append(contender)
        for number in range(order.num_rounds):
            start = number % max(1, len(contenders))
            for contender in contenders[start:] + contenders[:start]:
                note_turn(contender.name)
                contender.run_block()
        for contender in contenders:
            note_turn(contender.name)
            contender.finish()
        del contender, contenders
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return figures


class _Contender:
    """One hook in training."""

    def __init__(
        self, name: str, figures: HookFigures, model: ComparedModel, batches: list[tuple[Tensor, ...]], order: Order, device: torch.device
    ) -> None:
        self.name = name
        self.figures = figures
        self.order = order
        self.device = device
        self.batches: Iterator[tuple[Tensor, ...]] = itertools.cycle(batches)
        hook = "none" if name == COMPUTE else name
        torch.manual_seed(0)  # the same weights for all
        network = model.build().to(device)
        num_bytes = sum(parameter.nbytes for parameter in network.parameters())
        self.ddp = DistributedDataParallel(network, **ddp_options(hook, order.backend, num_bytes))
        self.optimizer = torch.optim.SGD(network.parameters(), lr=_LEARNING_RATE)
        self.num_steps = 0
        self.loss = torch.zeros((), device=device)
        self.wire_bytes: list[int] = []  # of each block
        self.link_bytes: list[int] = []
        refusal = None
        try:
            self.attached = attach(hook, self.ddp)
        except Exception as error:
            refusal = rank_files.one_line(str(error) or repr(error))
        refusals: list[str | None] = [None] * order.world_size
        dist.all_gather_object(refusals, refusal)
        figures.skip_reason = next(filter(None, refusals), None)

    def warm_up(self) -> None:
        """A hook that says when it has decided gets as long as that takes; one that is only called "auto", all of the limit."""
        handle = self.attached.handle
        decides = hasattr(handle, "decided")
        limit = self.order.max_warmup_steps if decides or "auto" in self.name else self.order.num_warmup_steps
        self._steps(_MIN_WARMUP_STEPS)
        while self.num_steps < limit and not (decides and _all_ranks(bool(handle.decided), self.device)):
            self._steps(min(_DECIDED_EVERY_STEPS, limit - self.num_steps))
        self.figures.num_warmup_steps = self.num_steps

    def run_block(self) -> None:
        wire_before, link_before, steps_before = self._count_wire_bytes(), _sent_bytes(self.order.interface), self.num_steps
        dist.barrier()  # all ranks compute at the same time, without synchronisation as with it
        with _without_sync(self.ddp) if self.name == COMPUTE else nullcontext():
            self._steps(self.order.num_settle_steps)
            elapsed_s = _timed(lambda: self._steps(self.order.num_steps), self.device)
        count = self.num_steps - steps_before
        wire_bytes, link_bytes = self._count_wire_bytes() - wire_before, _sent_bytes(self.order.interface) - link_before
        most = torch.tensor([elapsed_s, wire_bytes, link_bytes], dtype=torch.float64, device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        elapsed_s, wire_bytes, link_bytes = most.tolist()
        self.figures.block_step_times_s.append(elapsed_s / self.order.num_steps)
        self.wire_bytes.append(wire_bytes / count)
        self.link_bytes.append(link_bytes / count)

    def finish(self) -> None:
        """Fills in the figures that are not times.

        Raises:
            RuntimeError: the ranks' parameters differ, or hold NaN.
        """
        figures, handle = self.figures, self.attached.handle
        if self.name == COMPUTE:
            return
        sums = torch.stack([parameter.detach().double().sum() for parameter in self.ddp.parameters()])
        most, least = sums.clone(), sums.clone()
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        if not torch.equal(most, least):
            raise RuntimeError(f"after {self.num_steps} steps with {self.name} the ranks' parameters differ, or hold NaN")
        if self.attached.count_wire_bytes is not None:
            figures.wire_bytes_per_step = sum(self.wire_bytes) / len(self.wire_bytes)
        if self.order.interface is not None:
            figures.link_bytes_per_step = sum(self.link_bytes) / len(self.link_bytes)
        if self.device.type == "cuda" and self.order.one_at_a_time:
            figures.peak_memory_bytes = torch.cuda.max_memory_allocated()
        figures.loss_end = self.loss.item()
        if handle is not None:
            figures.stats = dataclasses.asdict(handle.stats())
            figures.explanation = str(handle.explain()) if hasattr(handle, "explain") else None

    def _steps(self, count: int) -> None:
        autocast_precision = "bf16" if self.device.type == "cuda" else "fp32"
        for _ in range(count):
            inputs, targets = next(self.batches)
            self.optimizer.zero_grad(set_to_none=True)
            with precision.autocast(autocast_precision, self.device.type):
                loss = compute_loss(self.ddp, (inputs, targets))
            loss.backward()
            self.optimizer.step()
            self.loss = loss.detach()
        self.num_steps += count

    def _count_wire_bytes(self) -> int:
        count = self.attached.count_wire_bytes
        return 0 if count is None else count(self.num_steps)


def _without_sync(ddp_model: DistributedDataParallel) -> Any:
    ddp_model.require_forward_param_sync = False  # for good: this copy only computes; else the first forward would broadcast buffers
    return ddp_model.no_sync()


def _all_ranks(condition: bool, device: torch.device) -> bool:
    agreed = torch.tensor(int(condition), device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed.item())


def _timed(block: Callable[[], None], device: torch.device) -> float:
    """Seconds; on CUDA between events on the current stream, so that the steps before the block keep the device busy."""
    if device.type != "cuda":
        start_s = time.perf_counter()
        block()
        return time.perf_counter() - start_s
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    block()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _sent_bytes(interface: str | None) -> int:
    """Bytes that an interface of this process's network namespace has sent."""
    if interface is None:
        return 0
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{os.getpid()}/net/dev").read_text().splitlines()[2:])
    return int({name.strip(): counters for name, counters in lines.items()}[interface].split()[8])
