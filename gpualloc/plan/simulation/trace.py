"""Job traces in CSV: one job a line, with the fields of public cluster traces (Philly, Helios).

Columns: job_id and submit_time_s are needed, and either job_type, or num_gpus and duration_s, by whose product the job is put into
a category (small, medium, large, xl) as in Pollux (OSDI 2021, section 5.1). docs/simulate.md lists all of them.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpualloc.errors import UsageError
from gpualloc.plan.simulation.job_types import JobType

COLUMNS = ("job_id", "submit_time_s", "job_type", "num_gpus", "duration_s", "min_gpus", "max_gpus", "gpu_types", "work_scale", "weight")
DEFAULT_MAX_GPUS = 64
_CATEGORY_GPU_HOURS = (("small", 1.0), ("medium", 10.0), ("large", 100.0), ("xl", math.inf))  # upper ends


@dataclass(frozen=True, kw_only=True)
class TraceJob:
    """A job as it is submitted."""

    job_id: str
    submit_s: float
    job_type: str  # a name of `JobType`
    work_scale: float = 1.0  # of the job type's whole work
    min_gpus: int = 1
    max_gpus: int = DEFAULT_MAX_GPUS
    gpu_types: tuple[str, ...] | None = None  # None: any
    weight: float = 1.0


def read_trace(path: Path, job_types: Mapping[str, JobType]) -> tuple[TraceJob, ...]:
    """The jobs of a CSV file, in its order.

    Raises:
        UsageError: with the line and what is allowed there.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            names = [name.strip() for name in reader.fieldnames or []]
            _check_columns(path, names)
            reader.fieldnames = names
            jobs: dict[str, TraceJob] = {}
            for row in reader:
                try:
                    job = _job(row, job_types)
                    if job.job_id in jobs:
                        raise ValueError(f"job_id {job.job_id!r} stands in an earlier line already; each job has its own")
                except ValueError as error:
                    raise UsageError(f"{path}:{reader.line_num}: {error}") from None
                jobs[job.job_id] = job
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"trace {path} cannot be read: {error}; give a CSV file in UTF-8") from error
    if not jobs:
        raise UsageError(f"{path}: no job in it; a trace has a header such as job_id,submit_time_s,job_type and a line for each job")
    return tuple(jobs.values())


def _check_columns(path: Path, names: list[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{path}:1: column {name!r} is unknown; choose from {', '.join(COLUMNS)}{hint}")
    missing = [name for name in COLUMNS[:2] if name not in names]
    if missing or not ("job_type" in names or {"num_gpus", "duration_s"} <= set(names)):
        need = ", ".join(missing) if missing else "job_type, or num_gpus and duration_s"
        raise UsageError(f"{path}:1: lacks {need}; a trace has job_id, submit_time_s and either job_type or num_gpus and duration_s")


def _job(row: Mapping[str, str | None], job_types: Mapping[str, JobType]) -> TraceJob:
    if "" in row:
        raise ValueError("more fields than the header has columns; quote commas inside a field")
    text = {name: (value or "").strip() for name, value in row.items()}
    if not text["job_id"]:
        raise ValueError("job_id is empty; give each job a name of its own")
    job_type = text.get("job_type") or _type_of_category(text, job_types)
    if job_type not in job_types:
        raise ValueError(f"job_type {job_type!r} is unknown; choose one of {', '.join(job_types)}")
    low, high = _count(text, "min_gpus", 1), _count(text, "max_gpus", DEFAULT_MAX_GPUS)
    if low > high:
        raise ValueError(f"min_gpus {low} is above max_gpus {high}; swap them")
    types = tuple(sorted(name for name in text.get("gpu_types", "").replace(";", " ").split() if name))
    return TraceJob(
        job_id=text["job_id"],
        submit_s=_number(text, "submit_time_s", None, allow_zero=True),
        job_type=job_type,
        work_scale=_number(text, "work_scale", 1.0),
        min_gpus=low,
        max_gpus=high,
        gpu_types=types or None,
        weight=_number(text, "weight", 1.0),
    )


def _type_of_category(text: Mapping[str, str], job_types: Mapping[str, JobType]) -> str:
    gpu_hours = _count(text, "num_gpus", None) * _number(text, "duration_s", None) / 3600
    category = next(name for name, limit in _CATEGORY_GPU_HOURS if gpu_hours < limit)
    found = [name for name, kind in job_types.items() if kind.training.category == category]
    if not found:
        raise ValueError(f"{gpu_hours:.3g} GPU-hours make a job of category {category}, of which no job type is known; name a job_type")
    return found[len(text["job_id"]) % len(found)]  # some of each, and the same at every reading


def _number(text: Mapping[str, str], name: str, default: float | None, *, allow_zero: bool = False) -> float:
    value = text.get(name, "")
    if not value and default is not None:
        return default
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not allow_zero):
        raise ValueError(f"{name} is {value!r}; give a number {'of at least' if allow_zero else 'above'} 0")
    return number


def _count(text: Mapping[str, str], name: str, default: int | None) -> int:
    number = _number(text, name, None if default is None else float(default))
    if number != int(number):
        raise ValueError(f"{name} is {text[name]!r}; give a whole number of at least 1")
    return int(number)
