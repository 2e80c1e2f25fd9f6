"""Job traces: read from a CSV file, or made from arrivals and a mix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TraceJob:
    job_id: str
    submit_s: float
    job_type: str
    work_scale: float = 1.0  # of the job type's whole work
    min_gpus: int = 1
    max_gpus: int = 64
    gpu_types: tuple[str, ...] | None = None
    weight: float = 1.0
