"""The hook as a Lightning callback: registered, kept in checkpoints, its figures beside the training's own.

Trainer(strategy=DDPStrategy(gradient_as_bucket_view=True), callbacks=[GradientHook()])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
from torch.nn.parallel import DistributedDataParallel

from gpualloc.comm.handle import HookHandle
from gpualloc.comm.register import register_comm_hook
from gpualloc.comm.stats_logger import StatsLogger


class GradientHook(lightning.Callback):
    """Averages the gradients of a module under DDP through gpualloc; one process without DDP is left alone.

    Args:
        wire: as for `register_comm_hook`.
        every_steps: how often figures go to the trainer's loggers; None: as often as the trainer's own (`log_every_n_steps`).
        options: further ones of `register_comm_hook`.
    """

    def __init__(self, wire: str = "auto", *, every_steps: int | None = None, **options: Any) -> None:
        self.handle: HookHandle | None = None  # from the start of training on
        self._wire = wire
        self._every_steps = every_steps
        self._options = options
        self._stats: StatsLogger | None = None
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Registers the hook: the module is in its DDP, and no backward pass has run yet.

        Raises:
            UsageError: several processes without DDP.
        """
        model: Any = trainer.strategy.model
        if trainer.world_size == 1 and not isinstance(model, DistributedDataParallel):
            return
        before = self.state_dict().get("hook")  # of a checkpoint, or of an earlier fit, whose DDP is gone
        self.handle = register_comm_hook(model, self._wire, **self._options)
        if before is not None:
            self.handle.load_state_dict(before)
        self._loaded = None
        if trainer.is_global_zero and trainer.loggers:
            every_steps = self._every_steps or max(int(getattr(trainer, "log_every_n_steps", 50)), 1)

            def log(metrics: dict[str, float], step: int) -> None:
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step)

            self._stats = StatsLogger(self.handle, log, every_steps=every_steps)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self._stats is not None:
            self._stats.after_step(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Rank 0's goes into the checkpoint, for all: what error feedback keeps is each rank's own and begins again at 0."""
        if self._loaded is not None:
            return {"hook": self._loaded}
        return {} if self.handle is None else {"hook": {**self.handle.state_dict(), "feedback": []}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Called before the hook is registered."""
        self._loaded = state_dict.get("hook")
