"""A training's figures and its hook's, every few steps, as a flat dict of floats."""

from __future__ import annotations

from gpualloc.comm.handle import HookHandle
from gpualloc.comm.stats_logger import PREFIX, HookFigures, Log
from gpualloc.errors import UsageError


class StepLog:
    """Hands what was measured since the last time to `log(metrics, step)`. Of rank 0.

    Args:
        log: None: nothing is kept.
        every_steps: of the optimizer.
        handle: of the hook, where there is one.

    Raises:
        UsageError: every_steps is not above 0.
    """

    def __init__(self, log: Log | None, *, every_steps: int, handle: HookHandle | None) -> None:
        if every_steps < 1:
            raise UsageError(f"log_every_steps is {every_steps}; choose a whole number above 0, such as 50")
        self.log = log
        self._every_steps = every_steps
        self._hook = HookFigures(handle) if log is not None and handle is not None else None
        self._figures: dict[str, float] = {}
        self._seconds, self._steps = 0.0, 0

    def add_window(self, seconds: float, num_steps: int, *, samples_per_step: int, loss: float | None) -> None:
        """Some steps whose end the host has waited for."""
        self._seconds, self._steps = self._seconds + seconds, self._steps + num_steps
        self._figures["mean_step_time_s"] = self._seconds / self._steps
        self._figures["samples_per_s"] = samples_per_step * self._steps / self._seconds
        if loss is not None:
            self._figures["loss"] = loss

    def after_step(self, step: int, *, epoch: int) -> None:
        if self.log is None or step % self._every_steps:
            return
        figures = {"epoch": epoch, **self._figures}
        metrics = {PREFIX + name: float(value) for name, value in figures.items()}
        self.log({**metrics, **(self._hook.read() if self._hook is not None else {})}, step)
        self._figures, self._seconds, self._steps = {}, 0.0, 0
