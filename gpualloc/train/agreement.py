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
_ASK_EVERY_S = 0.1  # a question took 0.5 ms, on two cores that others used too (2026-11-26, 2 gloo ranks)
_MAX_STRIDE = 1000  # steps
_SAVING_TIMEOUT_S = 600.0  # while rank 0 writes a checkpoint, the others wait for it


class Agreement:
    """Asks all ranks about ten times a second, after as many steps on each. The answer is taken when the next question is put, so that
    nobody waits for it.

    On process groups of its own, with gloo: neither the GPU nor the gradients' collectives are touched. `group` is for saving, which takes
    longer than an answer: a rank that a lost peer has ended first waits for its collectives on the way.

    Args:
        save_every_s: how often a checkpoint is wanted; None: never.
        timeout_s: how long an answer is waited for.
    """

    def __init__(self, *, save_every_s: float | None, timeout_s: float) -> None:
        self._timeout = datetime.timedelta(seconds=timeout_s)
        saving = datetime.timedelta(seconds=max(timeout_s, _SAVING_TIMEOUT_S))
        self.group, self._asking_group = (
            (dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None) for timeout in (saving, self._timeout)
        )
        self.is_stop_asked = False
        self._save_every_s, self._saved_s = save_every_s, time.monotonic()
        self._ballot = torch.zeros(2, dtype=torch.int32)
        self._work: Any = None
        self._stride, self._steps_left, self._asked_s = 1, 1, time.monotonic()
        signal.signal(signal.SIGTERM, self._note)

    def after_step(self) -> tuple[bool, bool]:
        """(save a checkpoint, stop): the same on every rank."""
        if self.group is None:
            wish = self._own_wish()
            return wish >= _SAVE, wish == _STOP
        self._steps_left -= 1
        if self._steps_left > 0:
            return False, False
        agreed = _GO_ON
        asked_steps = self._stride
        if self._work is not None:
            self._work.wait(self._timeout)
            agreed, self._stride = int(self._ballot[0]), -int(self._ballot[1])
        now_s = time.monotonic()
        step_time_s = (now_s - self._asked_s) / asked_steps
        stride = min(_MAX_STRIDE, max(1, int(_ASK_EVERY_S / max(step_time_s, 1e-9))))
        self._ballot = torch.tensor([self._own_wish(), -stride], dtype=torch.int32)  # the most urgent wish, the shortest stride
        self._work = dist.all_reduce(self._ballot, op=dist.ReduceOp.MAX, group=self._asking_group, async_op=True)
        self._asked_s, self._steps_left = now_s, self._stride
        return agreed >= _SAVE, agreed == _STOP

    def saved(self) -> None:
        """A checkpoint was written: the next one is due later. Also takes the answer that is on its way, which is about the one written."""
        self.settle()
        self._saved_s = time.monotonic()

    def settle(self) -> None:
        """Waits for what is on its way."""
        if self._work is not None:
            self._work.wait(self._timeout)
            self._work = None
            self.is_stop_asked |= int(self._ballot[0]) == _STOP

    def _own_wish(self) -> int:
        if self.is_stop_asked:
            return _STOP
        is_due = self._save_every_s is not None and time.monotonic() - self._saved_s > self._save_every_s
        return _SAVE if is_due else _GO_ON

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_stop_asked = True
