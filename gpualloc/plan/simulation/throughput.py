"""How long a training step takes on GPUs of some type: measured tables, or a parametric model where there is none."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpualloc.errors import UsageError
from gpualloc.plan.protocol import Shape

FloatArray = NDArray[np.float64]
_COLUMNS = ("model", "num_nodes", "num_gpus", "per_device_batch_size", "step_time_s", "sync_time_s")


class StepTimes(Protocol):
    """Step times of one model on one GPU type."""

    @property
    def local_batch_range(self) -> tuple[float, float]:
        """The smallest and the largest per_device_batch_size that it tells."""

    def at(self, shape: Shape, local_batch_sizes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(step_time_s, sync_time_s) at each per_device_batch_size; the second is the exposed communication inside the first."""


@dataclass(frozen=True, kw_only=True)
class ModelledSteps:
    """Pollux's step time (Qiao et al., OSDI 2021, eq. 8 to 12): (compute^gamma + sync^gamma)^(1/gamma).

    compute = compute_fixed_s + compute_per_sample_s * local batch; sync = alpha + beta * (num_gpus - 2), with one pair of figures inside
    a node and one between nodes, 0 for one GPU.
    """

    compute_fixed_s: float
    compute_per_sample_s: float
    sync_node_s: float
    sync_node_per_gpu_s: float
    sync_network_s: float
    sync_network_per_gpu_s: float
    overlap: float  # gamma: 1 adds the two, 10 is near their maximum
    local_batch_range: tuple[float, float]

    def at(self, shape: Shape, local_batch_sizes: FloatArray) -> tuple[FloatArray, FloatArray]:
        num_nodes, num_gpus = shape
        compute = self.compute_fixed_s + self.compute_per_sample_s * local_batch_sizes
        sync = 0.0
        if num_nodes > 1:
            sync = self.sync_network_s + self.sync_network_per_gpu_s * (num_gpus - 2)
        elif num_gpus > 1:
            sync = self.sync_node_s + self.sync_node_per_gpu_s * (num_gpus - 2)
        step = (compute**self.overlap + sync**self.overlap) ** (1 / self.overlap)
        return step, step - compute


class MeasuredSteps:
    """Medians of measured steps, linear between batch sizes and, for shapes that were not measured, between counts of whole nodes."""

    def __init__(self, rows: Mapping[Shape, Mapping[float, list[tuple[float, float]]]]) -> None:
        self._curves: dict[Shape, tuple[FloatArray, FloatArray, FloatArray]] = {}
        for shape, by_batch in rows.items():
            batches = np.array(sorted(by_batch), dtype=np.float64)
            medians = np.array([np.median(np.array(by_batch[batch]), axis=0) for batch in batches])
            self._curves[shape] = (batches, medians[:, 0], medians[:, 1])
        singles = [batches for (nodes, _), (batches, _, _) in self._curves.items() if nodes == 1]
        self.local_batch_range = (min(b[0] for b in singles), max(b[-1] for b in singles))
        self._max_gpus = max(gpus for _, gpus in self._curves)

    def at(self, shape: Shape, local_batch_sizes: FloatArray) -> tuple[FloatArray, FloatArray]:
        if shape in self._curves:
            batches, step, sync = self._curves[shape]
            return np.interp(local_batch_sizes, batches, step), np.interp(local_batch_sizes, batches, sync)
        num_nodes, num_gpus = shape
        if num_gpus > self._max_gpus:
            missing = np.full(len(local_batch_sizes), np.nan)
            return missing, missing
        is_single = num_nodes == 1
        family = [known for known in self._curves if (known[0] == 1) == is_single]
        below = max((known for known in family if known[1] <= num_gpus), key=lambda known: (known[1], -known[0]), default=None)
        above = min((known for known in family if known[1] >= num_gpus), key=lambda known: (known[1], known[0]), default=None)
        if below is None or above is None:
            known = below or above
            if known is None:
                missing = np.full(len(local_batch_sizes), np.nan)
                return missing, missing
            return self.at(known, local_batch_sizes)
        share = 0.0 if above[1] == below[1] else math.log(num_gpus / below[1]) / math.log(above[1] / below[1])
        low, high = self.at(below, local_batch_sizes), self.at(above, local_batch_sizes)
        return low[0] + share * (high[0] - low[0]), low[1] + share * (high[1] - low[1])


def read_measured(path: Path) -> dict[str, MeasuredSteps]:
    """Model -> step times, from a CSV with the columns model, num_nodes, num_gpus, per_device_batch_size, step_time_s, sync_time_s.

    Raises:
        UsageError: with the line, where the file is not such a table.
    """
    rows: dict[str, dict[Shape, dict[float, list[tuple[float, float]]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise UsageError(f"{path}:1: lacks {', '.join(missing)}; a table of steps has the columns {', '.join(_COLUMNS)}")
            for row in reader:
                try:
                    shape = int(row["num_nodes"]), int(row["num_gpus"])
                    batch, step, sync = (float(row[name]) for name in _COLUMNS[3:])
                    is_sound = 1 <= shape[0] <= shape[1] and batch > 0 and 0 <= sync < step < math.inf
                except (TypeError, ValueError):
                    is_sound = False
                if not is_sound:
                    raise UsageError(
                        f"{path}:{reader.line_num}: {dict(row)} is no measured step; "
                        "counts and times are numbers above 0, sync_time_s < step_time_s"
                    )
                rows[row["model"]][shape][batch].append((step, sync))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"table of steps {path} cannot be read: {error}; give a CSV file that can") from error
    no_single = [model for model, shapes in rows.items() if not any(nodes == 1 for nodes, _ in shapes)]
    if not rows or no_single:
        raise UsageError(f"{path}: {no_single[0] if no_single else 'no model'} has no row on one node; add one, or leave the model out")
    return {model: MeasuredSteps(shapes) for model, shapes in rows.items()}
