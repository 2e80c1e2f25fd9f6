"""Rehearses a user's script at several numbers of GPUs, each in a fresh process."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpualloc.bench import rank_files
from gpualloc.bench.ranks import started_ranks, wait_for_ranks
from gpualloc.errors import CaseFailedError
from gpualloc.rehearsal import script_worker
from gpualloc.rehearsal.cluster import Cluster

if TYPE_CHECKING:
    from gpualloc.profiling.script import Script
    from gpualloc.rehearsal.step_timer import TimedSteps

Scaling = Literal["weak", "strong"]


@dataclass(frozen=True, kw_only=True)
class RehearsedSize:
    """The script as one of `num_gpus` ranks."""

    num_gpus: int
    steps: TimedSteps | None  # None where it failed
    failure: str | None = None


def unequal_compute_s(sizes: Sequence[RehearsedSize], scaling: Scaling) -> tuple[float, float] | None:
    """(least, most) time of computing alone on two GPUs and more, where it is not the same within a tenth though each has as much to do."""
    compute_s = [size.steps.compute_time_s for size in sizes if size.steps is not None and size.num_gpus > 1]
    if scaling == "strong" or not compute_s or max(compute_s) <= 1.1 * min(compute_s):
        return None
    return min(compute_s), max(compute_s)


def speedups(sizes: Sequence[RehearsedSize], scaling: Scaling) -> list[float | None]:
    """Throughput over that of the first size that ran, times its number of GPUs: over one GPU where that is among them.

    Args:
        scaling: "weak" where a GPU's batch stays as the number of GPUs grows, "strong" where the script divides one batch among them.
    """
    base = next((size for size in sizes if size.steps is not None), None)
    found: list[float | None] = []
    for size in sizes:
        if size.steps is None or base is None or base.steps is None:
            found.append(None)
        else:
            ratio = base.steps.step_time_s / size.steps.step_time_s
            found.append(ratio * (size.num_gpus if scaling == "weak" else base.num_gpus))
    return found


def rehearse_script(
    script: Script,
    num_gpus: int,
    cluster: Cluster,
    *,
    num_warmup_steps: int,
    num_steps: int,
    timeout_s: float,
    show_log: Callable[[str], None],
) -> RehearsedSize:
    """One size; a script that fails comes back with why, its output shown."""
    from gpualloc.rehearsal.step_timer import TimedSteps

    with tempfile.TemporaryDirectory(prefix="gpualloc-rehearse-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        order = script_worker.RehearsalOrder(
            rehearsal={"world_size": num_gpus, **cluster._asdict()},
            script=asdict(script),
            num_warmup_steps=num_warmup_steps,
            num_steps=num_steps,
        )
        script_worker.write_order(folder, order)
        try:
            with started_ranks(folder, [dict(os.environ)], worker="gpualloc.rehearsal.script_worker") as processes:
                wait_for_ranks(folder, processes, timeout_s=timeout_s)
        except CaseFailedError as error:
            show_log(rank_files.output_file(folder, 0).read_text(errors="replace"))
            return RehearsedSize(num_gpus=num_gpus, steps=None, failure=str(error).removeprefix("rank 0: "))
        steps = TimedSteps(**json.loads(rank_files.report_file(folder, 0).read_text()))
        return RehearsedSize(num_gpus=num_gpus, steps=steps)
