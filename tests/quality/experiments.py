"""Trainings made by hand, and small ones to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpualloc.bench.grid import GridCell
from gpualloc.quality.options import PlannedRun, QualityOptions, plan_runs
from gpualloc.quality.records import CurvePoint, TrainingRun
from gpualloc.records import BenchCase
from tests.store.sample_measurements import image_case, llm_case

TINY_TEXT: dict[str, Any] = {"workloads": ("llm",), "sequence_length": 16, "per_device_batch_size": 4, "num_steps": 16, "num_seeds": 2}


def plan_tiny_text(**changes: Any) -> list[PlannedRun]:
    return plan_runs(QualityOptions(device="cpu", **{**TINY_TEXT, "hooks": ("none",), **changes}), num_gpus=0)


def alone(plan: PlannedRun) -> BenchCase:
    """The case as a single process, to be trained within the test."""
    cell: GridCell = plan.cell
    fields = {**vars(cell.case), "strategy": "single", "hook": "none", "world_size": 1}
    return BenchCase(**fields)


def made_run(
    value: float,
    *,
    seed: int,
    precision: str = "fp32",
    hook: str = "none",
    is_image: bool = True,
    step_time_s: float = 0.02,
    **changes: Any,
) -> TrainingRun:
    """A training that ended with this accuracy, or this loss for text."""
    case = (image_case if is_image else llm_case)(precision=precision, hook=hook, seed=seed, num_steps=100)
    losses = (2.0, 1.0, 1.0 - value / 2) if is_image else (5.0, 3.0, value)
    accuracies = (0.1, value / 2, value) if is_image else (None, None, None)
    curve = tuple(
        CurvePoint(step=step, train_loss=loss, test_loss=loss + 0.05, test_accuracy=accuracy)
        for step, loss, accuracy in zip((10, 50, 100), losses, accuracies, strict=True)
    )
    if not is_image:
        curve = (*curve[:-1], CurvePoint(step=100, train_loss=value, test_loss=value))
    fields: dict[str, Any] = {"learning_rate": 0.01, "status": "ok", "curve": curve, "step_time_s": step_time_s, "train_time_s": 2.0}
    return TrainingRun(case=case, **{**fields, **changes})


def made_group(values: Sequence[float], **changes: Any) -> list[TrainingRun]:
    return [made_run(value, seed=seed, **changes) for seed, value in enumerate(values)]
