"""From what was asked for to the trainings, the reference first; checked before any process starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpualloc.bench.grid import GridCell, expand_grid
from gpualloc.bench.options import WORKLOADS, BenchOptions
from gpualloc.errors import UsageError
from gpualloc.workloads import MODELS
from gpualloc.workloads.files import missing_package

REFERENCE = ("fp32", "none")  # precision and hook that the others are compared with
TEXT = "pydoc_topics"  # the text of `case.data`: the language's reference that comes with every CPython
MIN_SEEDS = 2
_MAX_SEEDS = 100


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    model: str
    size: int  # pixels or tokens
    per_device_batch_size: int
    num_steps: int
    learning_rate: float
    target: float  # accuracy of images, loss of text


# On a CPU a training takes some ten seconds of two quiet cores. There both models pass their targets well before the last step (torch
# 2.13, 2026-11: 95 % of the digits, a loss of 2.7); those of a GPU are set by the same rule, not tuned.
_DEFAULTS: Mapping[tuple[str, str], _Defaults] = {
    ("cpu", "image"): _Defaults(model="mobilenet_v2", size=32, per_device_batch_size=16, num_steps=80, learning_rate=0.02, target=0.8),
    ("cpu", "llm"): _Defaults(model="gpt_tiny", size=64, per_device_batch_size=16, num_steps=150, learning_rate=2e-3, target=2.9),
    ("cuda", "image"): _Defaults(model="mobilenet_v2", size=64, per_device_batch_size=32, num_steps=300, learning_rate=0.02, target=0.95),
    ("cuda", "llm"): _Defaults(model="gpt_small", size=128, per_device_batch_size=32, num_steps=300, learning_rate=1e-3, target=2.2),
}
_DEFAULT_PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16")}  # a CPU emulates the others, several times as slow
_DEFAULT_HOOKS = {
    "cpu": ("none", "gpualloc_fp16", "gpualloc_int8", "gpualloc_auto"),
    "cuda": ("none", "gpualloc_fp32", "gpualloc_fp16", "gpualloc_bf16", "gpualloc_int8", "gpualloc_auto"),
}


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """An experiment as asked for. None stands for the default of the device and the workload."""

    device: str
    workloads: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    image_size_px: int | None = None
    sequence_length: int | None = None
    per_device_batch_size: int | None = None
    precisions: tuple[str, ...] | None = None
    hooks: tuple[str, ...] | None = None
    num_gpus: int | None = None
    ranks_per_gpu: int = 1
    num_steps: int | None = None
    num_seeds: int = 3
    first_seed: int = 0
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A training to run, or why it cannot run here."""

    cell: GridCell
    learning_rate: float


def plan_runs(options: QualityOptions, *, num_gpus: int) -> list[PlannedRun]:
    """The trainings: workload by workload, the reference's seeds first, then each precision and hook.

    Raises:
        UsageError: naming the value and what is allowed.
    """
    if not MIN_SEEDS <= options.num_seeds <= _MAX_SEEDS:
        raise UsageError(f"--seeds {options.num_seeds} is out of range; choose {MIN_SEEDS} to {_MAX_SEEDS}: a verdict needs their spread")
    if options.learning_rate is not None and not 0 < options.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate {options.learning_rate:g} is out of range; choose a number above 0")
    runs = []
    for workload in _workloads(options):
        if workload not in WORKLOADS:
            raise UsageError(f"--workload {workload!r} is unknown; choose of {', '.join(WORKLOADS)}")
        _check_data(workload)
        defaults = _DEFAULTS[options.device, workload]
        learning_rate = options.learning_rate or defaults.learning_rate
        for cell in _cells(options, workload, defaults, num_gpus):
            runs += [
                PlannedRun(cell=replace(cell, case=replace(cell.case, seed=options.first_seed + index)), learning_rate=learning_rate)
                for index in range(options.num_seeds)
            ]
    return runs


def default_target(device: str, workload: str) -> float:
    """What a training should reach: accuracy of images, loss of text."""
    return _DEFAULTS[device, workload].target


def _workloads(options: QualityOptions) -> tuple[str, ...]:
    if options.workloads is not None:
        return options.workloads
    named = [MODELS[model].workload for model in options.models or () if model in MODELS]
    return tuple(dict.fromkeys(named)) or ("image", "llm")


def _check_data(workload: str) -> None:
    if workload == "image" and importlib.util.find_spec("sklearn") is None:
        raise missing_package("scikit-learn")
    if workload == "llm" and importlib.util.find_spec("pydoc_data") is None:
        raise UsageError("--workload llm trains on pydoc_data, which this Python lacks; install its full standard library, or use image")


def _cells(options: QualityOptions, workload: str, defaults: _Defaults, num_gpus: int) -> list[GridCell]:
    named = [name for name in options.models or () if name not in MODELS or MODELS[name].workload == workload]
    models = named or options.models or (defaults.model,)  # one of another workload is left to be refused
    found: dict[tuple[str, str, str], GridCell] = {}
    for precision in (REFERENCE[0], *(options.precisions or _DEFAULT_PRECISIONS[options.device])):
        hooks = options.hooks or (_DEFAULT_HOOKS[options.device] if precision == REFERENCE[0] else (REFERENCE[1],))
        if precision == REFERENCE[0]:
            is_asked = options.precisions is None or precision in options.precisions
            hooks = (REFERENCE[1], *(hooks if is_asked else ()))
        for cell in expand_grid(_grid_options(options, workload, models, defaults, precision, hooks), num_gpus=num_gpus):
            data = "digits" if workload == "image" else TEXT
            case = replace(cell.case, data=data)
            found.setdefault((case.model, case.precision, case.hook), replace(cell, case=case))
    return sorted(found.values(), key=lambda cell: models.index(cell.case.model))


def _grid_options(
    options: QualityOptions, workload: str, models: Sequence[str], defaults: _Defaults, precision: str, hooks: tuple[str, ...]
) -> BenchOptions:
    """The same checks and refusals as those of a benchmark."""
    size = options.image_size_px if workload == "image" else options.sequence_length
    sizes = (defaults.size if size is None else size,)
    return BenchOptions(
        device=options.device,
        workloads=(workload,),
        models=tuple(models),
        image_sizes_px=sizes if workload == "image" else None,
        sequence_lengths=sizes if workload == "llm" else None,
        per_device_batch_sizes=(
            defaults.per_device_batch_size if options.per_device_batch_size is None else options.per_device_batch_size,
        ),
        precisions=(precision,),
        strategies=("ddp",),
        hooks=hooks,
        num_gpus=None if options.num_gpus is None else (options.num_gpus,),
        ranks_per_gpu=options.ranks_per_gpu,
        num_warmup_steps=0,
        num_steps=defaults.num_steps if options.num_steps is None else options.num_steps,
        num_repeats=1,
        seed=options.first_seed,
    )
