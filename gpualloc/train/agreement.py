"""Ranks that stop, or save a checkpoint, after the same step: one of them may hear of it alone, a signal or its clock."""

from __future__ import annotations

import datetime
import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

_GO_ON, _SAVE, _STOP = 0, 1, 2


class Agreement:
    """Asks all ranks after every step. The answer comes a step later, so that nobody waits for it.

    On a process group of its own, with gloo: neither the GPU nor the gradients' collectives are touched.

    Args:
        save_every_s: how often a checkpoint is wanted; None: never.
    """

    def __init__(self, *, save_every_s: float | None, timeout: datetime.timedelta) -> None:
        self.group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        self.is_stop_asked = False
        self._save_every_s, self._saved_s = save_every_s, time.monotonic()
        self._wish = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None
        signal.signal(signal.SIGTERM, self._note)

    def after_step(self) -> tuple[bool, bool]:
        """(save a checkpoint, stop): the same on every rank."""
        wish = self._own_wish()
        if self.group is None:
            return wish >= _SAVE, wish == _STOP
        agreed = _GO_ON
        if self._work is not None:
            self._work.wait()
            agreed = int(self._wish)
        self._wish = torch.tensor([wish], dtype=torch.int32)
        self._work = dist.all_reduce(self._wish, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return agreed >= _SAVE, agreed == _STOP

    def saved(self) -> None:
        """A checkpoint was written: the next one is due later. Also takes the answer that is on its way, which is about the one written."""
        self.settle()
        self._saved_s = time.monotonic()

    def settle(self) -> None:
        """Waits for what is on its way."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            self.is_stop_asked |= int(self._wish) == _STOP

    def _own_wish(self) -> int:
        if self.is_stop_asked:
            return _STOP
        is_due = self._save_every_s is not None and time.monotonic() - self._saved_s > self._save_every_s
        return _SAVE if is_due else _GO_ON

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_stop_asked = True
