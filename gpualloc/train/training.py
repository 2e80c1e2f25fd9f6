"""A training in progress on one rank: batches, steps, checkpoints, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from gpualloc.bench import precision as precisions
from gpualloc.errors import GpuallocError
from gpualloc.launch.progress import Progress, write_environment, write_progress
from gpualloc.launch.rank_places import RankPlace
from gpualloc.strategies.wrapped import Wrapped
from gpualloc.train import checkpoint
from gpualloc.train.agreement import Agreement
from gpualloc.train.sampler import ResumableSampler
from gpualloc.train.settings import Settings
from gpualloc.train.step_log import StepLog

EXIT_STOPPED = 143  # 128 + SIGTERM: a checkpoint is saved and training is not done
_REPORT_EVERY_S = 1.0
_NUM_WINDOWS = 20  # of steps, the last ones are kept


@dataclass(kw_only=True)
class Training:
    """What `prepare` returns. `model` is what to call; `batches` and `step` do the rest."""

    plain_model: nn.Module  # as it was given, without its DDP
    wrapped: Wrapped
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    loader: DataLoader[Any]
    sampler: ResumableSampler
    settings: Settings
    device: torch.device
    rank: int
    world_size: int
    samples_per_step: int
    num_steps: int
    max_grad_norm: float | None
    agreement: Agreement
    step_log: StepLog
    steps_done: int = 0
    epoch: int = 0
    first_step: int = 0  # above 0 where training went on from a checkpoint
    _position: int = 0  # samples of the epoch
    _num_passes: int = 0  # of the step in the making
    _loss: Tensor | None = None
    _window_started_s: float | None = None
    _window_steps: int = 0
    _step_times_s: list[float] = field(default_factory=list)
    _place: RankPlace = field(default_factory=RankPlace)

    @property
    def model(self) -> nn.Module:
        """The model to call: on this rank's device, wrapped, under autocast."""
        return self.wrapped.model

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and saves."""
        return self.rank == 0

    def batches(self) -> Iterator[Any]:
        """Batches of this rank on its device until training is done. A checkpoint is saved at the end.

        Raises:
            SystemExit: with code 143, in the step after a SIGTERM to any rank, once the checkpoint is saved.
            GpuallocError: a checkpoint cannot be saved, or `step` was not called for a batch.
        """
        self.model.train()
        while self.steps_done < self.num_steps:
            self.sampler.go_to(self.epoch, self._position)
            for batch in self.loader:
                self._place.take_batch()
                passes_before = (self.steps_done, self._num_passes)
                is_last_pass = self._num_passes == self.settings.grad_accum_steps - 1
                no_sync = self.wrapped.no_sync if self.wrapped.no_sync is not None and not is_last_pass else nullcontext
                with no_sync():  # also around forward, as DDP wants it
                    yield tree_map(self._to_device, batch)
                if (self.steps_done, self._num_passes) == passes_before:
                    raise GpuallocError("a batch was left without training.step(loss); call it once for every batch")
                if self._num_passes == 0:
                    self._after_step()
                    if self.steps_done >= self.num_steps:
                        break
            else:
                self.epoch, self._position = self.epoch + 1, 0
        self._place.take_batch()  # there is none, and nobody is waited for from here on but to save
        self.agreement.settle()
        self.save()
        self._report(is_done=True)
        if self.agreement.group is not None:
            dist.barrier(self.agreement.group)  # nobody leaves while another still saves

    def step(self, loss: Tensor) -> None:
        """Backward, and the optimizer's step once enough passes are accumulated."""
        self._place.begin_step()
        self.scaler.scale(loss.mean() / self.settings.grad_accum_steps).backward()  # type: ignore[no-untyped-call]
        self._loss = loss.detach()
        self._num_passes += 1
        if self._num_passes < self.settings.grad_accum_steps:
            return
        if self.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps_done, self._num_passes = self.steps_done + 1, 0
        self._position += self.samples_per_step

    def save(self) -> None:
        """Writes the checkpoint, if one is wanted. Every rank calls it.

        Raises:
            GpuallocError: on every rank: it cannot be written.
        """
        path = self.settings.checkpoint
        if path is None:
            return
        handle = self.wrapped.handle
        own = {"random": checkpoint.random_state(self.device), "hook": handle.state_dict() if handle else None}
        shared = {
            "scaler": self.scaler.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "learning_rate_factor": self.settings.learning_rate_factor,
            "epoch": self.epoch,
            "position": self._position,
            "steps_done": self.steps_done,
            "samples_per_step": self.samples_per_step,
            "world_size": self.world_size,
        }
        checkpoint.save(path, self.plain_model, self.optimizer, own, shared, self.agreement.group)
        self.agreement.saved()
        self._window_started_s = None  # the pause is not training

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one.

        Raises:
            GpuallocError: it cannot be read.
        """
        self.first_step = 0
        if self.settings.job_folder is not None and self.is_main:
            write_environment(self.settings.job_folder, self.device.type)
        state = None if self.settings.checkpoint is None else checkpoint.load(self.settings.checkpoint, self.plain_model, self.optimizer)
        if state is None:
            return
        # With another number of samples a step, as many samples are done as before, and as many steps are left as they take.
        done = state["steps_done"] * state["samples_per_step"]
        self.steps_done = self.first_step = round(done / self.samples_per_step)
        self.epoch, self._position = state["epoch"], state["position"]
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._rescale(self.settings.learning_rate_factor / state["learning_rate_factor"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        own = state["ranks"][self.rank % len(state["ranks"])]
        if len(state["ranks"]) == self.world_size:
            checkpoint.set_random_state(own["random"], self.device)
        hook = own["hook"]
        if self.wrapped.handle is not None and hook is not None and hook["wire"] == self.settings.hook.removeprefix("gpualloc_"):
            self.wrapped.handle.load_state_dict(hook)

    def _rescale(self, ratio: float) -> None:
        """The checkpoint has the learning rates of the plan that it was trained by."""
        for group in self.optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] *= ratio
        if hasattr(self.scheduler, "base_lrs"):
            self.scheduler.base_lrs = [rate * ratio for rate in self.scheduler.base_lrs]

    def _after_step(self) -> None:
        self._time()
        if self.is_main:
            self.step_log.after_step(self.steps_done, epoch=self.epoch)
        should_save, should_stop = self.agreement.after_step()
        if should_save:
            self.save()
        if should_stop:
            self._report()
            print(f"gpualloc: stopped after step {self.steps_done} of {self.num_steps}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_STOPPED)

    def _time(self) -> None:
        """Step times in windows of a second or more, from the second step on; the device is waited for once a window."""
        now_s = time.monotonic()
        if self._window_started_s is None:
            self._window_started_s, self._window_steps = now_s, 0
            return
        self._window_steps += 1
        if now_s - self._window_started_s < _REPORT_EVERY_S and self.steps_done < self.num_steps:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            now_s = time.monotonic()
        window_s = now_s - self._window_started_s
        self._step_times_s.append(window_s / self._window_steps)
        if self.is_main and self.step_log.log is not None:
            loss = None if self._loss is None else float(self._loss.mean())
            self.step_log.add_window(window_s, self._window_steps, samples_per_step=self.samples_per_step, loss=loss)
        self._window_started_s, self._window_steps = now_s, 0
        self._report()

    def _report(self, *, is_done: bool = False) -> None:
        folder = self.settings.job_folder
        if folder is None or not self.is_main:
            return
        stats = self.wrapped.handle.stats() if self.wrapped.handle is not None else None
        settings = {name: value for name, value in asdict(self.settings).items() if name in Progress.__dataclass_fields__}
        progress = Progress(
            step=self.steps_done,
            num_steps=self.num_steps,
            epoch=self.epoch,
            world_size=self.world_size,
            first_step=self.first_step,
            samples_per_step=self.samples_per_step,
            step_times_s=tuple(self._step_times_s[-_NUM_WINDOWS:]),
            loss=None if self._loss is None else float(self._loss.mean()),
            nonfinite_steps=None if stats is None else stats.nonfinite_steps,
            device=self.device.type,
            is_done=is_done,
            **settings,
        )
        try:
            write_progress(folder, progress)
        except OSError as error:  # the training matters more
            print(f"gpualloc: warning: cannot write progress to {folder}: {error}", file=sys.stderr, flush=True)

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return precisions.convert_input(value.to(self.device, non_blocking=True), self.settings.precision)
