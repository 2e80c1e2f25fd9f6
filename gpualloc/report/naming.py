"""What cases and settings are called in a report: by what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.findings import Threshold
from gpualloc.findings.labels import parts, split_parts
from gpualloc.records import BenchCase
from gpualloc.report.words import Words


def localised_parts(case: BenchCase, words: Words) -> dict[str, str]:
    """`gpualloc.findings.labels.parts` in the page's language."""
    size = words("size.px", n=case.image_size_px) if case.image_size_px is not None else words("size.tokens", n=case.sequence_length)
    changed = {
        "size": size,
        "batch": words("batch", n=case.per_device_batch_size),
        "ranks": words.devices(case.world_size, noun(case)),
        "cluster": case.cluster() or "",
    }
    return {**parts(case), **changed}


def labels(cases: Sequence[BenchCase], words: Words, *, without: Sequence[str] = ()) -> tuple[str, list[str]]:
    """(what all cases share, for each of them what it does not share)."""
    rows = [localised_parts(case, words) for case in cases]
    if not rows:
        return "", []
    shared, differing = split_parts(rows, without=without)
    return shared, [", ".join(filter(None, (row[name] for name in differing))) or row["model"] for row in rows]


def unpriced_unit(case: BenchCase) -> str:
    """What a cost is counted in without a price: hours of GPUs, or of the ranks on a CPU."""
    return "GPU-h" if case.device == "cuda" else "rank-h"


def noun(case: BenchCase) -> str:
    """Of `Words.devices`."""
    if case.ranks_per_gpu > 1:
        return "slice"
    return "gpu" if case.device == "cuda" else "rank"


def workload_text(case: BenchCase, words: Words) -> str:
    """ "mobilenet_v2, 300 px"."""
    found = localised_parts(case, words)
    return f"{found['model']}, {found['size']}"


def setting_text(case: BenchCase, words: Words) -> str:
    """ "fp16, ddp/gpualloc_auto, channels_last"."""
    found = localised_parts(case, words)
    how = "" if case.strategy == "single" else found["how"]
    return ", ".join(filter(None, (found["precision"], how, found["details"])))


def size_of_axis(threshold: Threshold, value: int, words: Words) -> str:
    """ "300 px", a value of the axis that the threshold is on."""
    return words("size.px" if threshold.axis == "image_size_px" else "size.tokens", n=value)
