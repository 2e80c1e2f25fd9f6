"""What a training step takes of a GPU's memory, before anything was run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gpualloc.advice.options import estimated_memory
from gpualloc.advice.records import Memory
from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase
from gpualloc.workloads import DEFAULT_SEQUENCE_LENGTH, find_model

_DEFAULT_IMAGE_SIZE_PX = 224
_PRECISIONS = ("fp32", "bf16")


def memory_before(
    only: Mapping[str, Collection[object]], counts: Sequence[int], *, device_memory_bytes: int | None
) -> list[tuple[BenchCase, Memory]]:
    """An estimate by precision, for ddp and for fsdp over each of the counts; none for a model that is not gpualloc's own.

    Args:
        only: field of a case -> values, with "model".
    """
    name = str(next(iter(only["model"])))
    try:
        spec = find_model(name)
    except GpuallocError:
        return []

    def first(field: str, default: int) -> int:
        return int(str(next(iter(only.get(field, (default,))))))

    size: dict[str, Any] = {"image_size_px": None, "sequence_length": None}
    if spec.workload == "image":
        size["image_size_px"] = first("image_size_px", _DEFAULT_IMAGE_SIZE_PX)
    else:
        size["sequence_length"] = first("sequence_length", DEFAULT_SEQUENCE_LENGTH)
    rows = []
    for precision in only.get("precision", _PRECISIONS):
        for strategy, world_size in [("ddp", max(counts)), *(("fsdp", count) for count in counts if count > 1)]:
            case = BenchCase(
                workload=spec.workload,
                model=name,
                **size,
                per_device_batch_size=first("per_device_batch_size", spec.default_per_device_batch_size["cuda"]),
                precision=str(precision),
                strategy=strategy,
                hook="none",
                device="cuda",
                world_size=world_size,
                ranks_per_gpu=1,
                data="synthetic",
                num_warmup_steps=0,
                num_steps=1,
                num_repeats=1,
                seed=0,
            )
            memory = estimated_memory(case, device_memory_bytes)
            if memory.num_bytes is not None:
                rows.append((case, memory))
    return rows
