"""What one training gave, and the JSON file that holds an experiment."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpualloc.errors import StoreError
from gpualloc.plain_data import from_json
from gpualloc.records import BenchCase, Environment
from gpualloc.whole_files import write_whole

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The state of a training after some steps. None stands for inf or NaN."""

    step: int
    train_loss: float | None  # mean over the steps since the point before, and over the ranks
    test_loss: float | None  # on held-out data
    test_accuracy: float | None = None  # fraction; None for text


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One case trained with one seed. `case.num_steps` steps, once."""

    case: BenchCase
    learning_rate: float  # at the start; it falls linearly to 0
    status: str  # "ok", "diverged", "skipped", "oom", "failed"
    reason: str | None = None
    curve: tuple[CurvePoint, ...] = ()
    step_time_s: float | None = None  # median over the stretches between points, the first left out; of the slowest rank
    train_time_s: float | None = None  # all steps, evaluation left out
    wire_bytes_per_step: int | None = None
    nonfinite_steps: int | None = None  # as in `gpualloc.records.Measurement`


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All trainings of one machine that are to be compared."""

    environment: Environment
    runs: tuple[TrainingRun, ...]


def experiment_to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON types."""
    return {"schema_version": SCHEMA_VERSION, **asdict(experiment)}


def write_experiment(path: Path, experiment: Experiment) -> None:
    """Replaces the file in one go.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        write_whole(path, json.dumps(experiment_to_json(experiment), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; choose another file with --output") from error


def read_experiment(path: Path) -> Experiment:
    """What `write_experiment` wrote.

    Raises:
        StoreError: the file is missing, of a newer schema, or not an experiment.
    """
    try:
        data = from_json(path.read_text(encoding="utf-8"))
        version = data["schema_version"]
        if version > SCHEMA_VERSION:
            raise StoreError(f"{path} has schema {version}, this gpualloc reads up to {SCHEMA_VERSION}; upgrade gpualloc to read it")
        return Experiment(environment=Environment(**data["environment"]), runs=tuple(map(_run_from_json, data["runs"])))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; name a file that gpualloc bench --quality wrote") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read: {error!r}; name a file that gpualloc bench --quality wrote") from error


def _run_from_json(fields: dict[str, Any]) -> TrainingRun:
    curve = tuple(CurvePoint(**point) for point in fields["curve"])
    return TrainingRun(**{**fields, "case": BenchCase(**fields["case"]), "curve": curve})
