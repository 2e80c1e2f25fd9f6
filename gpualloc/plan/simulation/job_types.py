"""What simulated jobs train: work, how batch size and progress trade, step times on each GPU type.

Goodput is throughput times statistical efficiency (Qiao et al., Pollux, OSDI 2021, eq. 5 to 7): with r the gradient's noise-to-signal
ratio at the initial batch B0, a step at batch B advances the job as (r + 1) / (r B0 / B + 1) steps at B0 would; r grows as the job trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpualloc.errors import UsageError
from gpualloc.plan.protocol import Shape
from gpualloc.plan.simulation.throughput import ModelledSteps, StepTimes, read_measured

NUM_LEVELS = 25  # parts of a job's progress within which its goodput is held constant
_NUM_BATCHES = 32  # global batch sizes that are tried, in a geometric row


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, apart from the device: figures of the Pollux and Sia artefacts, rounded (see docs/simulate.md)."""

    name: str
    kind: str  # "image" or "llm" (text and speech)
    category: str  # by GPU-hours on the slowest GPU: small < 1, medium < 10, large < 100, xl
    init_batch_size: int
    max_batch_size: int
    total_progress: float  # steps at the initial batch size
    noise_ratio: tuple[float, ...]  # r at equal distances of progress, linear between
    restart_cost_s: float
    slowdown: float = 1.0  # of a whole job over its bare steps: evaluation, checkpoints, input


@dataclass(frozen=True, kw_only=True)
class JobType:
    """A training with its step times by GPU type."""

    training: Training
    steps: Mapping[str, StepTimes] = field(repr=False)

    @property
    def name(self) -> str:
        return self.training.name

    @cached_property
    def _cache(self) -> dict[tuple[str, Sequence[Shape]], NDArray[np.float64]]:
        return {}

    def goodputs(self, gpu_type: str, shapes: tuple[Shape, ...]) -> NDArray[np.float64]:
        """[NUM_LEVELS, num_shapes] progress per second with the best batch, 0 where it does not run."""
        key = gpu_type, shapes
        if key not in self._cache:
            columns = [self._goodput(gpu_type, shape) for shape in shapes]
            self._cache[key] = np.stack(columns, axis=1) if columns else np.zeros((NUM_LEVELS, 0))
        return self._cache[key]

    def duration_s(self, gpu_type: str, shape: Shape) -> float:
        """Of the whole job on that; inf where it does not run."""
        goodput = self.goodputs(gpu_type, (shape,))[:, 0]
        return float(np.sum(self.training.total_progress / NUM_LEVELS / goodput)) if goodput.all() else np.inf

    def _goodput(self, gpu_type: str, shape: Shape) -> NDArray[np.float64]:
        training, steps = self.training, self.steps.get(gpu_type)
        num_gpus = shape[1]
        if steps is None:
            return np.zeros(NUM_LEVELS)
        low, high = steps.local_batch_range
        smallest = max(training.init_batch_size, low * num_gpus)
        if smallest > training.max_batch_size:
            return np.zeros(NUM_LEVELS)
        batches = np.geomspace(smallest, training.max_batch_size, _NUM_BATCHES)
        local = batches / num_gpus
        accumulated = np.ceil(local / high - 1e-8) - 1
        if num_gpus == 1:  # the noise is not known from one batch alone (Pollux, section 4.2)
            accumulated = np.where(batches > training.init_batch_size, np.maximum(accumulated, 1), accumulated)
        local = local / (accumulated + 1)
        step, sync = steps.at(shape, local)
        seconds = step + accumulated * (step - sync)
        ratio = self.noise_ratios[:, None]
        gain = (ratio + 1) / (ratio * training.init_batch_size / batches[None, :] + 1)
        goodput = np.where((local >= low - 1e-8)[None, :], gain / seconds[None, :], 0.0)
        best: NDArray[np.float64] = np.nan_to_num(goodput).max(axis=1) / training.slowdown
        return best

    @cached_property
    def noise_ratios(self) -> NDArray[np.float64]:
        points = self.training.noise_ratio
        return np.interp((np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS, np.linspace(0, 1, len(points)), points)


# Batch sizes, steps to the target, noise and restart times: Pollux (OSDI 2021, table 1) and Sia (SOSP 2023, section 5) with their published
# artefacts; noise rounded and taken at a middle batch size. Slowdown: the artefact's calibration of simulated against real jobs.
TRAININGS = (
    Training(
        name="cifar10", kind="image", category="small", init_batch_size=128, max_batch_size=4096, total_progress=39_063,
        noise_ratio=(0.8, 40, 90, 350, 600), restart_cost_s=50, slowdown=1.8,
    ),
    Training(
        name="deepspeech2", kind="llm", category="medium", init_batch_size=20, max_batch_size=640, total_progress=28_536,
        noise_ratio=(0.6, 300, 1500, 1500, 2000), restart_cost_s=25, slowdown=1.2,
    ),
    Training(
        name="bert", kind="llm", category="medium", init_batch_size=12, max_batch_size=384, total_progress=14_774,
        noise_ratio=(120, 120, 400, 600, 600), restart_cost_s=120, slowdown=1.2,
    ),
    Training(
        name="yolov3", kind="image", category="large", init_batch_size=8, max_batch_size=512, total_progress=103_444,
        noise_ratio=(0.05, 45, 60, 180, 700), restart_cost_s=80, slowdown=1.2,
    ),
    Training(
        name="imagenet", kind="image", category="xl", init_batch_size=200, max_batch_size=12_800, total_progress=576_526,
        noise_ratio=(4, 45, 150, 600, 600), restart_cost_s=250, slowdown=1.2,
    ),
)  # fmt: skip

# Shares of jobs by training in Sia's sampled traces (artefact): philly, and saturn with more very long ones.
MIXES: Mapping[str, Mapping[str, float]] = {
    "philly": {"cifar10": 0.78, "deepspeech2": 0.085, "bert": 0.07, "yolov3": 0.045, "imagenet": 0.02},
    "saturn": {"cifar10": 0.82, "deepspeech2": 0.063, "bert": 0.044, "yolov3": 0.044, "imagenet": 0.029},
}


def _modelled(fixed_ms: float, sample_ms: float, node_ms: float, network_ms: float, batches: tuple[float, float]) -> ModelledSteps:
    return ModelledSteps(
        compute_fixed_s=fixed_ms / 1e3,
        compute_per_sample_s=sample_ms / 1e3,
        sync_node_s=node_ms / 1e3,
        sync_node_per_gpu_s=node_ms / 2e4,
        sync_network_s=network_ms / 1e3,
        sync_network_per_gpu_s=network_ms / 2e4,
        overlap=1.6,
        local_batch_range=batches,
    )


# Assumptions, not measurements: round figures of the order that such GPUs need, for use without a table of measured steps.
# Milliseconds: a step's fixed part, a sample, the gradients inside a node and between nodes; then the local batch that fits.
_ASSUMED_STEPS: Mapping[str, Mapping[str, ModelledSteps]] = {
    "cifar10": {
        "t4": _modelled(15, 0.62, 12, 60, (32, 1024)),
        "rtx2080ti": _modelled(12, 0.33, 12, 30, (32, 1024)),
        "a100": _modelled(12, 0.15, 5, 8, (32, 1024)),
    },
    "deepspeech2": {
        "t4": _modelled(60, 22, 60, 250, (10, 60)),
        "rtx2080ti": _modelled(40, 13, 60, 120, (10, 60)),
        "a100": _modelled(30, 5, 12, 20, (10, 80)),
    },
    "bert": {
        "t4": _modelled(120, 85, 90, 450, (4, 12)),
        "rtx2080ti": _modelled(90, 40, 90, 220, (4, 12)),
        "a100": _modelled(110, 9, 20, 40, (4, 12)),
    },
    "yolov3": {
        "t4": _modelled(80, 95, 60, 300, (4, 8)),
        "rtx2080ti": _modelled(60, 45, 60, 150, (4, 8)),
        "a100": _modelled(70, 13, 12, 25, (4, 8)),
    },
    "imagenet": {
        "t4": _modelled(30, 5.2, 25, 130, (20, 150)),
        "rtx2080ti": _modelled(25, 3.0, 25, 65, (20, 150)),
        "a100": _modelled(25, 1.25, 8, 14, (20, 200)),
    },
}
# The GPUs that the clusters of the Pollux and Sia artefacts are made of.
GPU_TYPE_OF_CLUSTER: Mapping[str, str] = {"aws": "t4", "rtx": "rtx2080ti", "dgx": "a100"}


def assumed_job_types() -> dict[str, JobType]:
    """The job types that come with the package."""
    return {training.name: JobType(training=training, steps=_ASSUMED_STEPS[training.name]) for training in TRAININGS}


def measured_job_types(folder: Path) -> dict[str, JobType]:
    """Job types over the CSV files of a folder, one for each GPU type; aws, rtx and dgx stand for t4, rtx2080ti and a100.

    Raises:
        UsageError: no such folder, a file is not as `read_measured` wants it, or no known training is in all of them.
    """
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise UsageError(f"--rates {folder} holds no CSV file; give a folder with one table of steps for each GPU type, such as t4.csv")
    tables = {GPU_TYPE_OF_CLUSTER.get(file.stem, file.stem): read_measured(file) for file in files}
    types = {
        training.name: JobType(training=training, steps={gpu: table[training.name] for gpu, table in tables.items()})
        for training in TRAININGS
        if all(training.name in table for table in tables.values())
    }
    if not types:
        raise UsageError(f"--rates {folder}: no file has any of the models {', '.join(training.name for training in TRAININGS)}")
    return types
