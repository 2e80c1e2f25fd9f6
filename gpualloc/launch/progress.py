"""How far a job is, and where it runs: small JSON files in its folder, written by rank 0 through `gpualloc.train`."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpualloc.plain_data import from_json
from gpualloc.records import Environment
from gpualloc.whole_files import write_whole

_PROGRESS = "progress.json"
_ENVIRONMENT = "environment.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Of the attempt that wrote it."""

    step: int  # optimizer steps since the job's first start
    num_steps: int | None  # all of them, where the script knows
    epoch: int
    world_size: int
    first_step: int  # of this attempt: above 0 where it went on from a checkpoint
    samples_per_step: int  # of all ranks
    step_times_s: tuple[float, ...]  # means over windows of a second or more; the first step and checkpoints are left out
    loss: float | None
    nonfinite_steps: int | None  # as the hook counts them
    device: str
    strategy: str
    precision: str
    hook: str
    per_device_batch_size: int
    grad_accum_steps: int
    is_done: bool = False

    @property
    def samples_per_s(self) -> float | None:
        """By the median window."""
        return self.samples_per_step / statistics.median(self.step_times_s) if self.step_times_s else None


def write_progress(folder: Path, progress: Progress) -> None:
    """Raises:
    OSError: it cannot be written.
    """
    _write(folder / _PROGRESS, asdict(progress))


def read_progress(folder: Path) -> Progress | None:
    """None where there is none: the script does not use `gpualloc.train`, or has not trained for a second."""
    try:
        fields = from_json((folder / _PROGRESS).read_text())
        progress = Progress(**{**fields, "step_times_s": tuple(fields["step_times_s"])})
        return progress if min((progress.samples_per_step, *progress.step_times_s)) > 0 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_environment(folder: Path, device: str) -> None:
    """Records the machine that this process runs on. What cannot be read or written stays unknown."""
    from gpualloc.bench.environment import detect_environment
    from gpualloc.errors import GpuallocError

    try:
        _write(folder / _ENVIRONMENT, asdict(detect_environment(device)))
    except (OSError, GpuallocError):
        return


def read_environment(folder: Path) -> Environment | None:
    try:
        return Environment(**from_json((folder / _ENVIRONMENT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # in a container nobody has made it
    write_whole(path, json.dumps(fields))
