"""The command that would measure what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from gpualloc.records import JOB_DATA, BenchCase

_SWITCHES = ("pin_memory", "non_blocking", "channels_last", "compile", "activation_checkpointing")


def bench_command(case: BenchCase, *, gpus: Sequence[int] = (), changes: str = "", rounds: int | None = None) -> str:
    """`gpualloc bench` with the case's setting; on synthetic data in place of what a job read.

    Args:
        gpus: numbers of GPUs, in place of the case's own.
        changes: options that take the place of those of the same name.
        rounds: fresh groups of processes.
    """
    size = ("--image-size", case.image_size_px) if case.image_size_px is not None else ("--sequence-length", case.sequence_length)
    counts = ",".join(map(str, gpus or ([case.world_size] if case.world_size > 1 else [])))
    words: dict[str, object] = {
        "--model": case.model,
        size[0]: size[1],
        "--batch-size": case.per_device_batch_size,
        "--precision": case.precision,
        "--strategy": "single"
        if case.strategy == "single" and not counts
        else f"single,{'ddp' if case.strategy == 'single' else case.strategy}",
    }
    if case.strategy == "ddp":
        words["--hook"] = case.hook
    if counts and case.gpus_per_node is not None:
        words.update({"--rehearse": counts, "--gpus-per-node": case.gpus_per_node, "--link": case.link, "--network": case.network})
    elif counts and case.device == "cuda":
        words["--gpus"] = ",".join(str(max(1, int(count) // case.ranks_per_gpu)) for count in counts.split(","))
    if case.ranks_per_gpu > 1:
        words["--ranks-per-gpu"] = case.ranks_per_gpu
    if case.data not in ("synthetic", JOB_DATA):
        words["--data"] = case.data
    if case.device == "cpu":
        words["--device"] = "cpu"
    for name, value in case.details().items():
        option = {"grad_accum_steps": "--grad-accum"}.get(name, f"--{name.replace('_', '-')}")
        words[option] = ("on" if value else "off") if name in _SWITCHES else value
    if rounds is not None:
        words["--rounds"] = rounds
    given = shlex.split(changes)
    for option, value in zip(given[::2], given[1::2], strict=True):
        words[option] = value
    return shlex.join(
        ["gpualloc", "bench", *(str(word) for option, value in words.items() if value is not None for word in (option, value))]
    )
