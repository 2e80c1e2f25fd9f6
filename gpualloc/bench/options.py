"""What the user asked to be measured, checked value by value before any process starts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from dataclasses import dataclass, fields

from gpualloc.bench.environment import DEVICES
from gpualloc.bench.precision import PRECISIONS
from gpualloc.errors import UsageError
from gpualloc.strategies import HOOKS, STRATEGIES
from gpualloc.workloads import MODELS, OPTIMIZERS, TUNINGS, find_model

WORKLOADS = ("image", "llm")
DEFAULT_STRATEGIES = ("single", "ddp")
_DEFAULT_MODELS = ("mobilenet_v2", "gpt_small")
_MAX_BATCH_SIZE = 2**20
_MAX_STEPS = 10**6
_MAX_REPEATS = 1000
_MAX_RANKS_PER_GPU = 16
_MAX_WORKERS = 256
_MAX_REHEARSED = 2**16
_MAX_GRAD_ACCUM_STEPS = 2**16
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """A grid as asked for. None stands for "the default", which `gpualloc.bench.grid` fills in by device and precision.

    Values are checked one by one on construction; what depends on the machine or on other options is checked by the grid.

    Raises:
        UsageError: naming the value and what is allowed.
    """

    device: str  # "cuda" or "cpu"
    workloads: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    image_sizes_px: tuple[int, ...] | None = None
    sequence_lengths: tuple[int, ...] | None = None
    per_device_batch_sizes: tuple[int, ...] | None = None
    precisions: tuple[str, ...] = ("fp32",)
    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    hooks: tuple[str, ...] | None = None  # of ddp
    num_gpus: tuple[int | str, ...] | None = None  # of all strategies but single; "all" and "1..all" wait for the machine
    rehearse: tuple[int, ...] | None = None  # numbers of GPUs to rehearse on one device, in place of num_gpus
    gpus_per_node: int | None = None  # of the rehearsed cluster
    link: str | None = None  # inside its nodes
    network: str | None = None  # between them
    ranks_per_gpu: int = 1
    tunings: tuple[str, ...] | None = None
    optimizers: tuple[str, ...] | None = None
    pin_memory: tuple[bool, ...] | None = None
    non_blocking: tuple[bool, ...] | None = None
    num_workers: tuple[int, ...] | None = None
    channels_last: tuple[bool, ...] | None = None
    compile: tuple[bool, ...] | None = None
    grad_accum_steps: tuple[int, ...] | None = None
    activation_checkpointing: tuple[bool, ...] | None = None
    num_warmup_steps: int | None = None
    num_steps: int | None = None  # per repeat
    num_repeats: int | None = None
    data: str = "synthetic"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("--device", (self.device,), DEVICES)
        _check_names("--workload", self.workloads, WORKLOADS)
        _check_names("--model", tuple(name for name in self.models or () if ":" not in name), MODELS)
        _check_names("--precision", self.precisions, PRECISIONS)
        _check_names("--strategy", self.strategies, STRATEGIES)
        _check_names("--hook", self.hooks, HOOKS)
        _check_names("--tuning", self.tunings, TUNINGS)
        _check_names("--optimizer", self.optimizers, OPTIMIZERS)
        _check_numbers("--num-workers", self.num_workers, 0, _MAX_WORKERS)
        _check_numbers("--grad-accum", self.grad_accum_steps, 1, _MAX_GRAD_ACCUM_STEPS)
        _check_numbers("--batch-size", self.per_device_batch_sizes, 1, _MAX_BATCH_SIZE)
        _check_numbers("--rehearse", self.rehearse, 1, _MAX_REHEARSED)
        _check_numbers("--gpus-per-node", _given(self.gpus_per_node), 1, _MAX_REHEARSED)
        _check_numbers("--ranks-per-gpu", (self.ranks_per_gpu,), 1, _MAX_RANKS_PER_GPU)
        _check_numbers("--warmup-steps", _given(self.num_warmup_steps), 0, _MAX_STEPS)
        _check_numbers("--steps", _given(self.num_steps), 1, _MAX_STEPS)
        _check_numbers("--repeats", _given(self.num_repeats), 1, _MAX_REPEATS)
        _check_numbers("--seed", (self.seed,), 0, _MAX_SEED)
        for field in fields(self):
            value = getattr(self, field.name)
            if value == ():
                raise UsageError(f"{field.name} is empty; name at least one, or leave it out for the default")
            if isinstance(value, tuple):  # duplicates go, the order stays
                object.__setattr__(self, field.name, tuple(dict.fromkeys(value)))
        if self.data not in ("synthetic", "digits"):  # absolute, since a later --resume may start elsewhere
            object.__setattr__(self, "data", os.path.abspath(self.data))

    def chosen_models(self) -> list[str]:
        """Names of the models to run, workload by workload.

        `--model` and `--data` imply their workload where `--workload` is not given; a model of one's own is then a
        language model where sequence lengths alone are given, and else an image model.

        Raises:
            UsageError: a model of a workload that was not chosen, or one that cannot be imported.
        """
        if self.models is None:
            workloads = self.workloads or _workloads_of_data(self.data)
            return [name for workload in workloads for name in _DEFAULT_MODELS if MODELS[name].workload == workload]
        return [name for workload in WORKLOADS for name in self.models if self.workload_of(name) == workload]

    def workload_of(self, model: str) -> str:
        """ "image" or "llm".

        Raises:
            UsageError: as `chosen_models`.
        """
        if self.workloads is None:
            is_of_text = ":" in model and self.sequence_lengths is not None and self.image_sizes_px is None
            return find_model(model, workload="llm" if is_of_text else None).workload
        if model in MODELS and MODELS[model].workload not in self.workloads:
            raise UsageError(
                f"--model {model} is of workload {MODELS[model].workload} and the workload is {', '.join(self.workloads)}; "
                f"choose one of {', '.join(name for name in MODELS if MODELS[name].workload in self.workloads)}"
            )
        only = self.workloads[0] if len(self.workloads) == 1 and model not in MODELS else None
        return find_model(model, workload=only).workload


def _workloads_of_data(data: str) -> tuple[str, ...]:
    if data == "synthetic":
        return WORKLOADS
    return ("llm",) if os.path.isfile(data) else ("image",)  # a folder of texts needs --workload llm


def _given(value: int | None) -> tuple[int, ...] | None:
    return None if value is None else (value,)


def _check_names(option: str, values: tuple[str, ...] | None, allowed: Collection[str]) -> None:
    unknown = [value for value in values or () if value not in allowed]
    if unknown:
        closest = difflib.get_close_matches(unknown[0], allowed, n=1)
        hint = f"; did you mean {closest[0]}?" if closest else ""
        raise UsageError(f"{option} {unknown[0]!r} is unknown; choose one of {', '.join(allowed)}{hint}")


def _check_numbers(option: str, values: tuple[int, ...] | None, low: int, high: int) -> None:
    wrong = [value for value in values or () if not low <= value <= high]
    if wrong:
        raise UsageError(f"{option} {wrong[0]} is out of range; choose {low} to {high:,}")
