"""`prepare`: a model and its optimizer as the plan wants them, gone on from their checkpoint."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from gpualloc import strategies
from gpualloc.bench import precision as precisions
from gpualloc.comm.stats_logger import Log
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.records import BenchCase
from gpualloc.strategies.wrapped import UnderAutocast, Wrapped
from gpualloc.train.agreement import Agreement
from gpualloc.train.sampler import ResumableSampler
from gpualloc.train.settings import Place, Settings, read_place, read_settings
from gpualloc.train.step_log import StepLog
from gpualloc.train.training import Training


def prepare(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset[Any],
    *,
    per_device_batch_size: int,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    grad_accum_steps: int = 1,
    strategy: str | None = None,
    precision: str = "fp32",
    hook: str = "none",
    max_grad_norm: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every_s: float = 600.0,
    seed: int = 0,
    timeout_s: float = 60.0,
    log: Log | None = None,
    log_every_steps: int = 50,
    **loader_options: Any,
) -> Training:
    """The training of `model` on `dataset`, as `gpualloc run` planned it; with the arguments' values where nobody planned.

    Joins the process group where torchrun started this process, moves the model to this rank's device, wraps it, and goes on from the
    checkpoint if there is one. A SIGTERM to any rank has all ranks save a checkpoint after the same step and exit with code 143.

    Args:
        model: with the same weights on every rank, or rank 0's are taken.
        optimizer: of its parameters, before its first step. Its learning rates are multiplied by the plan's factor.
        dataset: map-style: it has a length and is indexed.
        per_device_batch_size: samples of one backward pass on one device.
        num_epochs, num_steps: when training is done; one of them. A step is one of the optimizer.
        scheduler: of the learning rate; it steps with the optimizer.
        grad_accum_steps: backward passes of a step.
        strategy: "single", "data_parallel", "ddp", "fsdp" or "hsdp"; None: ddp where there are several ranks.
        precision: "fp32", "fp16", "bf16", "tf32", "fp64", "pure_fp16" or "pure_bf16".
        hook: of ddp: "none", "torch_fp16", "gpualloc_auto", "gpualloc_fp16", ...
        max_grad_norm: gradients are clipped to this 2-norm; None: they are not.
        checkpoint: a file; None: none is written.
        checkpoint_every_s: how often, by rank 0's clock; at the end and on SIGTERM in any case.
        seed: of the order of samples.
        timeout_s: after which a collective that some rank does not join fails: longer than any rank alone is busy between two steps,
            such as rank 0 with an evaluation. Saving a checkpoint has ten minutes of its own.
        log: called on rank 0 with figures by name and the step, such as wandb.log; see docs/train.md.
        log_every_steps: how often.
        loader_options: for the DataLoader: num_workers, collate_fn, ...

    Raises:
        UsageError: settings that cannot be meant, or a data set smaller than a step.
        GpuallocError: the checkpoint cannot be read, or DDP finds that the ranks have different models.
    """
    place = read_place()
    settings = read_settings(
        world_size=place.world_size,
        strategy=strategy,
        precision=precision,
        hook=hook,
        per_device_batch_size=per_device_batch_size,
        grad_accum_steps=grad_accum_steps,
        checkpoint=checkpoint,
    )
    if (num_epochs is None) == (num_steps is None):
        raise UsageError(f"give one of num_epochs ({num_epochs}) and num_steps ({num_steps})")
    device, num_replicas = _join(place, settings, timeout_s)
    reason = precisions.unsupported_reason(settings.precision, device.type)
    if reason is not None:
        raise UsageError(f"precision {settings.precision!r}: {reason}; choose another")
    batch_size = settings.per_device_batch_size * num_replicas
    samples_per_step = batch_size * settings.grad_accum_steps * place.world_size
    num_samples = _count(dataset)
    if num_samples < samples_per_step:
        raise UsageError(
            f"the data set has {num_samples} samples and a step takes {samples_per_step} ({place.world_size * num_replicas} devices x "
            f"{settings.per_device_batch_size} x {settings.grad_accum_steps} passes); take a smaller batch or fewer devices"
        )
    sampler = ResumableSampler(num_samples, seed=seed, rank=place.rank, world_size=place.world_size, samples_per_step=samples_per_step)
    loader_options.setdefault("generator", torch.Generator().manual_seed(seed))  # else each epoch takes a number from dropout's
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, drop_last=True, pin_memory=device.type == "cuda", **loader_options
    )
    precisions.set_matmul_precision(settings.precision)
    _scale_learning_rates(optimizer, scheduler, settings.learning_rate_factor)
    wrapped = _wrap(model, optimizer, settings, device, place.world_size * num_replicas)
    scaler = precisions.make_scaler(settings.precision, device.type)
    if wrapped.is_sharded:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # a second of imports that others need not wait for

        scaler = ShardedGradScaler(device.type, enabled=scaler.is_enabled())
    training = Training(
        plain_model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        loader=loader,
        sampler=sampler,
        settings=settings,
        device=device,
        rank=place.rank,
        world_size=place.world_size,
        samples_per_step=samples_per_step,
        num_steps=num_steps or (num_epochs or 0) * (num_samples // samples_per_step),
        max_grad_norm=max_grad_norm,
        step_log=StepLog(log, every_steps=log_every_steps, handle=wrapped.handle),
        agreement=Agreement(save_every_s=checkpoint_every_s if settings.checkpoint and place.rank == 0 else None, timeout_s=timeout_s),
    )
    training.resume()
    return training


def _join(place: Place, settings: Settings, timeout_s: float) -> tuple[torch.device, int]:
    """(this rank's device, devices that this process drives)."""
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", place.local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if settings.strategy in strategies.ONE_PROCESS:
        return device, torch.cuda.device_count() if settings.strategy == "data_parallel" and has_gpu else 1
    if not place.is_launched:
        raise UsageError(f"strategy {settings.strategy!r} needs ranks; start the script with: torchrun --nproc-per-node N train.py")
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if has_gpu else "gloo", timeout=datetime.timedelta(seconds=timeout_s), device_id=device if has_gpu else None
        )
    return device, 1


def _count(dataset: Dataset[Any]) -> int:
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(
            f"{type(dataset).__name__} has no length; prepare takes a map-style data set, which it can divide among ranks and resume"
        ) from None


def _scale_learning_rates(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] *= factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]


def _wrap(model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings, device: torch.device, world_size: int) -> Wrapped:
    """The model as the benchmark wraps it, under autocast where the precision wants it."""
    dtype = precisions.trained_dtype(settings.precision)
    model.to(device=device, dtype=dtype if dtype != torch.float32 else None)
    is_sharded = settings.strategy in ("fsdp", "hsdp")
    if is_sharded:  # DDP does it itself
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    try:
        wrapped = strategies.wrap(_case(settings, device, world_size), model, device)
    except RuntimeError as error:
        if "same model" not in str(error) and "appears not to match" not in str(error):  # DDP's words
            raise
        raise GpuallocError(f"the ranks have different models: {str(error).splitlines()[0]}; make the same layers on every rank") from error
    if is_sharded:  # has replaced the parameters
        replaced = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [replaced[names[id(parameter)]] for parameter in group["params"]]
    narrowed = precisions.autocast_dtype(settings.precision)
    if narrowed is None:
        return wrapped
    inner = getattr(wrapped.model, "module", None)
    if isinstance(inner, UnderAutocast):  # data_parallel: its replicas run in threads
        inner.autocast = lambda: precisions.autocast(settings.precision, device.type)
    elif wrapped.run_batch is None:  # else FSDP narrows by a policy of its own
        model.forward = _under_autocast(model.forward, settings.precision, device.type)
    return wrapped


def _under_autocast(forward: Callable[..., Any], precision: str, device_type: str) -> Callable[..., Any]:
    """What comes out is FP32 again, so that the loss is computed in it."""

    def forward_under_autocast(*args: Any, **kwargs: Any) -> Any:
        with precisions.autocast(precision, device_type):
            outputs = forward(*args, **kwargs)
        return tree_map(lambda value: value.float() if _is_half(value) else value, outputs)

    return forward_under_autocast


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _case(settings: Settings, device: torch.device, world_size: int) -> BenchCase:
    """What the strategies read of a case."""
    return BenchCase(
        workload="image",
        model=settings.job_name,
        image_size_px=None,
        sequence_length=None,
        per_device_batch_size=settings.per_device_batch_size,
        precision=settings.precision,
        strategy=settings.strategy,
        hook=settings.hook,
        device=device.type,
        world_size=world_size,
        ranks_per_gpu=1,
        data="synthetic",
        num_warmup_steps=0,
        num_steps=1,
        num_repeats=1,
        seed=0,
        grad_accum_steps=settings.grad_accum_steps,
    )
