"""From what was asked for to the list of cases, in the order they run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpualloc import strategies, workloads
from gpualloc.bench import precision as precisions
from gpualloc.bench.notation import resolve_gpu_counts
from gpualloc.bench.options import BenchOptions
from gpualloc.errors import UsageError
from gpualloc.records import BenchCase
from gpualloc.strategies import data_ranks, num_shards
from gpualloc.workloads import DEFAULT_SEQUENCE_LENGTH, check_data, device_memory_reason, find_model, fitting_batch_size

CPU_WORLD_SIZE = 2  # ranks on a machine without GPUs, of all strategies but hybrids


@dataclass(frozen=True)
class GridCell:
    """A case, and why it cannot run here (None: it can)."""

    case: BenchCase
    skip_reason: str | None


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    """What is measured where the user does not say."""

    image_sizes_px: tuple[int, ...]
    sequence_lengths: tuple[int, ...]
    num_warmup_steps: int
    num_steps: int  # per repeat
    num_repeats: int
    per_device_batch_sizes: Mapping[str, int] | None = None  # workload -> samples; None: the model's own default


# Chosen so that the default grid takes a few minutes. DDP rebuilds its buckets in step 2, so that at least 2 steps are warm-up.
_DEFAULTS = {
    "cuda": _Defaults(
        image_sizes_px=(100, 300), sequence_lengths=(DEFAULT_SEQUENCE_LENGTH,), num_warmup_steps=10, num_steps=20, num_repeats=5
    ),
    "cpu": _Defaults(image_sizes_px=(100, 200), sequence_lengths=(128,), num_warmup_steps=2, num_steps=2, num_repeats=3),
}
# Without AVX512-FP16 fp16 is emulated: a step of gpt_small takes 0.8 s per 64 tokens (1 core of AMD EPYC, torch 2.13, 2026-11).
_CPU_FP16_DEFAULTS = _Defaults(
    image_sizes_px=(64, 128),
    sequence_lengths=(64,),
    num_warmup_steps=2,
    num_steps=2,
    num_repeats=3,
    per_device_batch_sizes={"image": 2, "llm": 1},
)
_FP16_HOOKS = ("none", "torch_fp16", "gpualloc_fp16")
_BF16_HOOKS = ("none", "torch_bf16", "gpualloc_bf16")
_DEFAULT_HOOKS = {"fp32": _FP16_HOOKS, "tf32": _FP16_HOOKS, "fp16": _FP16_HOOKS, "bf16": _BF16_HOOKS}  # of the others: none
_HOOKED_STRATEGIES = ("ddp",)
_DETAILS_OF_IMAGES = ("channels_last",)


@dataclass(frozen=True, kw_only=True)
class _Ranks:
    """How a case is spread: the part of it that does not depend on what is trained."""

    strategy: str
    hook: str
    world_size: int


def expand_grids(grids: Sequence[BenchOptions], *, num_gpus: int, device_memory_bytes: int | None = None) -> list[GridCell]:
    """The cases of several grids, each case once. Arguments as `expand_grid`.

    Raises:
        UsageError: as `expand_grid`.
    """
    cells: dict[str, GridCell] = {}
    for options in grids:
        for cell in expand_grid(options, num_gpus=num_gpus, device_memory_bytes=device_memory_bytes):
            cells.setdefault(cell.case.key(), cell)
    return list(cells.values())


def expand_grid(options: BenchOptions, *, num_gpus: int, device_memory_bytes: int | None = None) -> list[GridCell]:
    """The cases of a grid: for each model, size, batch size, precision and detail first the single process, then the other strategies.

    Args:
        options: with all values checked.
        num_gpus: visible GPUs; 0 for a CPU machine.
        device_memory_bytes: of the GPU, or of the machine: default batch sizes are made to fit it; None: they are the models' own.

    Raises:
        UsageError: options that contradict each other, the machine or the data.
    """
    models = options.chosen_models()
    cluster = _cluster(options)
    _check_workload_options(options, models)
    world_sizes = _world_sizes(options, num_gpus)
    is_asked = options.per_device_batch_sizes is not None  # then it is tried as it is
    memory_bytes = None if is_asked or device_memory_bytes is None else device_memory_bytes // _ranks_per_device(options, world_sizes)
    cells = []
    for model in models:
        for size in _sizes(options, model):
            cases = [
                _make_case(options, model=model, size=size, batch_size=1, precision=precision, ranks=ranks, details={**details, **cluster})
                for precision, details in itertools.product(options.precisions, _details(options, model))
                for ranks in _ranks(options, precision, world_sizes)
            ]
            for batch_size in options.per_device_batch_sizes or _default_batch_size(options, model, cases, memory_bytes):
                for case in cases:
                    case = dataclasses.replace(case, per_device_batch_size=batch_size)
                    cells.append(GridCell(case, _skip_reason(case, num_gpus, memory_bytes)))
    _check_data_of([cell.case for cell in cells])
    return cells


def _make_case(
    options: BenchOptions, *, model: str, size: int, batch_size: int, precision: str, ranks: _Ranks, details: Mapping[str, Any]
) -> BenchCase:
    defaults, workload = _defaults(options), options.workload_of(model)
    return BenchCase(
        workload=workload,
        model=model,
        image_size_px=size if workload == "image" else None,
        sequence_length=size if workload == "llm" else None,
        per_device_batch_size=batch_size,
        precision=precision,
        strategy=ranks.strategy,
        hook=ranks.hook,
        device=options.device,
        world_size=ranks.world_size,
        ranks_per_gpu=options.ranks_per_gpu,
        data=options.data,
        num_warmup_steps=_or(options.num_warmup_steps, defaults.num_warmup_steps),
        num_steps=_or(options.num_steps, defaults.num_steps),
        num_repeats=_or(options.num_repeats, defaults.num_repeats),
        seed=options.seed,
        **details,
    )


def _cluster(options: BenchOptions) -> dict[str, Any]:
    """Fields of the rehearsed cluster, of all cases: a single process is the rehearsal of one GPU.

    Raises:
        UsageError: links that are not known, or do not make such a cluster.
    """
    given = {"--gpus-per-node": options.gpus_per_node, "--link": options.link, "--network": options.network}
    if options.rehearse is None:
        unused = [option for option, value in given.items() if value is not None]
        if unused:
            raise UsageError(f"{unused[0]} describes a cluster to rehearse; name its sizes too, such as --rehearse 2,4,8")
        return {}
    if options.num_gpus is not None or options.ranks_per_gpu > 1:
        raise UsageError("--rehearse has one real rank; leave --gpus and --ranks-per-gpu out, or --rehearse")
    from gpualloc.rehearsal.cluster import make_cluster

    return make_cluster(options.rehearse, gpus_per_node=options.gpus_per_node, link=options.link, network=options.network)._asdict()


def _details(options: BenchOptions, model: str) -> list[dict[str, Any]]:
    """Every combination of the details that were asked for and mean something to the model."""
    asked: dict[str, tuple[Any, ...] | None] = {
        "tuning": options.tunings,
        "optimizer": options.optimizers,
        "pin_memory": options.pin_memory,
        "non_blocking": options.non_blocking,
        "num_workers": options.num_workers,
        "channels_last": options.channels_last,
        "compile": options.compile,
        "grad_accum_steps": options.grad_accum_steps,
        "activation_checkpointing": options.activation_checkpointing,
    }
    if options.workload_of(model) != "image":
        asked.update(dict.fromkeys(_DETAILS_OF_IMAGES))
    axes = {name: values for name, values in asked.items() if values is not None}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _defaults(options: BenchOptions) -> _Defaults:
    """The same for all cases of a grid, so that they can be compared."""
    is_slow = options.device == "cpu" and "fp16" in options.precisions
    return _CPU_FP16_DEFAULTS if is_slow else _DEFAULTS[options.device]


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _sizes(options: BenchOptions, model: str) -> tuple[int, ...]:
    defaults = _defaults(options)
    if options.workload_of(model) == "image":
        return options.image_sizes_px or defaults.image_sizes_px
    return options.sequence_lengths or defaults.sequence_lengths


def _default_batch_size(options: BenchOptions, model: str, cases: Sequence[BenchCase], memory_bytes: int | None) -> tuple[int]:
    """One for all cases of a model and size, so that they can be compared: what fits in each that fits at all."""
    spec, slow = find_model(model), _defaults(options).per_device_batch_sizes
    size = spec.default_per_device_batch_size[options.device] if slow is None else slow[cases[0].workload]
    if memory_bytes is None:
        return (size,)
    fitting = {fitting_batch_size(case, device_memory_bytes=memory_bytes, num_shards=num_shards(case)) for case in cases}
    return (min([size, *(fitting - {0})]),)


def _ranks_per_device(options: BenchOptions, world_sizes: tuple[int, ...]) -> int:
    if options.device == "cuda" or options.rehearse is not None:
        return options.ranks_per_gpu
    return max(world_sizes)


def _ranks(options: BenchOptions, precision: str, world_sizes: tuple[int, ...]) -> list[_Ranks]:
    ranks = []
    for strategy in options.strategies:
        hooks: tuple[str, ...] = ("none",)
        if strategy in _HOOKED_STRATEGIES:
            hooks = options.hooks or _DEFAULT_HOOKS.get(precision) or hooks
        sizes = (1,) if strategy == "single" else world_sizes
        if options.device == "cpu" and options.rehearse is None and strategy in strategies.HYBRIDS:
            sizes = (strategies.MIN_HYBRID_WORLD_SIZE,)  # ranks cost nothing there but their share of the cores
        pairs = itertools.product(sizes, hooks)
        ranks += [_Ranks(strategy=strategy, hook=hook, world_size=world_size) for world_size, hook in pairs]
    return ranks


def _world_sizes(options: BenchOptions, num_gpus: int) -> tuple[int, ...]:
    """Numbers of ranks of all strategies but single."""
    _check_ranks_are_used(options)
    if options.rehearse is not None:
        return options.rehearse
    if options.device == "cpu":
        counts = options.num_gpus or ("all",)
        if options.ranks_per_gpu > 1 or any(isinstance(count, int) for count in counts):
            raise UsageError(
                f"--gpus and --ranks-per-gpu need a GPU and this benchmark runs on the CPU, with {CPU_WORLD_SIZE} ranks in all; "
                "leave them out, or write --gpus 1..all"
            )
        return resolve_gpu_counts(counts, CPU_WORLD_SIZE)
    counts = resolve_gpu_counts(options.num_gpus or ("all",), num_gpus)
    for count in counts:
        if not 1 <= count <= num_gpus:
            raise UsageError(f"--gpus {count} is not possible, this machine has {num_gpus} visible; choose 1 to {num_gpus}")
    return tuple(count * options.ranks_per_gpu for count in counts)


def _skip_reason(case: BenchCase, num_gpus: int, memory_bytes: int | None) -> str | None:
    if memory_bytes is not None:
        reason = device_memory_reason(case, device_memory_bytes=memory_bytes, num_shards=num_shards(case))
        if reason is not None:
            return reason
    return (
        precisions.unsupported_reason(case.precision, case.device)
        or workloads.unsupported_reason(case)
        or strategies.unsupported_reason(case, num_gpus=num_gpus)
    )


def _check_ranks_are_used(options: BenchOptions) -> None:
    chosen = ", ".join(options.strategies)
    if options.num_gpus is not None and set(options.strategies) == {"single"}:
        raise UsageError("--gpus is for several ranks and --strategy is single; add ddp or leave --gpus out")
    if options.hooks is not None and not set(options.strategies) & set(_HOOKED_STRATEGIES):
        raise UsageError(f"--hook is for ddp and --strategy is {chosen}; add ddp or leave --hook out")


def _check_workload_options(options: BenchOptions, models: list[str]) -> None:
    chosen = {options.workload_of(model) for model in models}
    for option, value, workload in (
        ("--image-size", options.image_sizes_px, "image"),
        ("--channels-last", options.channels_last, "image"),
        ("--sequence-length", options.sequence_lengths, "llm"),
    ):
        if value is not None and workload not in chosen:
            raise UsageError(f"{option} is for workload {workload} and only {', '.join(chosen)} is run; add it or leave {option} out")


def _check_data_of(cases: list[BenchCase]) -> None:
    checked = set()
    for case in cases:
        figures = (case.workload, case.per_device_batch_size, data_ranks(case), case.image_size_px, case.sequence_length)
        if figures in checked:  # reading a folder of images takes a while
            continue
        checked.add(figures)
        check_data(
            case.data,
            case.workload,
            per_device_batch_size=case.per_device_batch_size,
            world_size=data_ranks(case),
            image_size_px=case.image_size_px,
            sequence_length=case.sequence_length,
        )
