"""`register_comm_hook` without the compiled extension: the same arithmetic in torch's operations, several passes a bucket.

No `from __future__ import annotations` here: DDP compares the annotations of a hook as objects.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gpualloc.comm.callable_hooks import average_bucket, is_narrowed
from gpualloc.comm.handle import HookHandle

_WIRE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(kw_only=True)
class Totals:
    """The counterpart of gpualloc._C.HookTotals."""

    steps: int = 0
    transfers: int = 0
    wire_bytes: int = 0
    nonfinite_steps: int = 0
    saturated_steps: int = 0


@dataclass(kw_only=True)
class Glance:
    """The counterpart of gpualloc._C.HookGlance."""

    counted: Totals
    counters: Tensor | None
    times: None = None
    timed_step: int = 0


class NonfiniteSteps:
    """Counts steps with inf or NaN on the device. Apart from the state, because callbacks hold it: one that held the process group
    could be its last owner, in the group's own thread, which cannot wait for its own end."""

    def __init__(self) -> None:
        self.now: Tensor | None = None  # [] flag of the running step
        self._before: Tensor | None = None  # [] number of the steps before it

    def note(self, averaged: Tensor) -> None:
        found = averaged.isfinite().all().logical_not()
        self.now = found if self.now is None else self.now.logical_or(found.to(self.now.device))

    def begin_step(self) -> None:
        if self.now is not None:
            self._before = self.now.long() if self._before is None else self._before + self.now
            self.now = None

    def glance(self) -> Tensor | None:
        """[] FP64 number of steps so far, on the device; None: none was looked at."""
        steps = [steps.double() for steps in (self._before, self.now) if steps is not None]
        return torch.stack(steps).sum() if steps else None

    def total(self) -> int:
        return sum(int(steps.item()) for steps in (self._before, self.now) if steps is not None)


class PythonHookState:
    """The counterpart of gpualloc._C.GradientHookState."""

    def __init__(self, group: dist.ProcessGroup, wire: str) -> None:
        self.group = group
        self.wire_dtype = _WIRE_DTYPES.get(wire)
        self.nonfinite = NonfiniteSteps()
        self._totals = Totals()

    def __getstate__(self) -> dict[str, Any]:
        """DDP is pickled and copied with its hooks' states, but a group cannot be: the copy has no hook until it is given one."""
        return {**self.__dict__, "group": None}

    def begin_bucket(self, bucket: GradBucket) -> None:
        if bucket.index() == 0:
            self.nonfinite.begin_step()
            self._totals.steps += 1
        self._totals.transfers += 1
        buffer = bucket.buffer()
        narrowed = self.wire_dtype is not None and is_narrowed(bucket)
        self._totals.wire_bytes += buffer.numel() * 2 if narrowed else _bytes_of(buffer)

    def totals(self) -> Totals:
        return replace(self._totals, nonfinite_steps=self._totals.nonfinite_steps + self.nonfinite.total())

    def steps(self) -> int:
        return self._totals.steps

    def glance(self) -> Glance:
        counters = self.nonfinite.glance()
        if counters is not None:
            counters = torch.stack([counters + self._totals.nonfinite_steps, torch.zeros_like(counters), torch.ones_like(counters)])
        return Glance(counted=replace(self._totals), counters=counters)

    def last_nonfinite(self) -> list[Tensor]:
        return [] if self.nonfinite.now is None else [self.nonfinite.now]

    def last_sumsq(self) -> list[Tensor]:
        return []  # the norm reads the gradients again

    def last_uncounted(self) -> list[Tensor]:
        return []  # all are looked at

    def wire_scale(self) -> float:
        return 1.0

    def times(self) -> None:
        return None

    def decisions(self) -> None:
        return None

    def freeze(self, frozen: bool) -> None:
        pass

    def memory(self) -> dict[str, Any]:
        return {**vars(self.totals()), "wire_scale": 1.0, "plan": [], "buckets": [], "feedback": []}

    def load(self, totals: Totals, **parts_of_the_compiled_hook: Any) -> None:
        self.nonfinite = NonfiniteSteps()
        self._totals = totals


def _bytes_of(buffer: Tensor) -> int:
    return buffer._values().nbytes + buffer._indices().nbytes if buffer.is_sparse else buffer.nbytes


def hook(state: PythonHookState, bucket: GradBucket) -> Future[Tensor]:
    state.begin_bucket(bucket)
    return average_bucket(state.group, bucket, state.wire_dtype, state.nonfinite.note)


def register(ddp_model: DistributedDataParallel, wire: str) -> HookHandle:
    """`wire="auto"` sends FP32: choosing is the compiled hook's."""
    state = PythonHookState(ddp_model.process_group, wire)
    ddp_model.register_comm_hook(state, hook)
    return HookHandle(ddp_model, state, Totals, wire=wire, native=False)
