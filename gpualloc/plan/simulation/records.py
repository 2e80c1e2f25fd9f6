"""What a simulation is asked, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from gpualloc.errors import UsageError
from gpualloc.plan.protocol import Allocation


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    round_s: float = 60.0
    work_error: float | None = 0.0  # the declared work left is off by up to this share; None: jobs declare nothing
    rate_error: float = 0.0  # standard deviation of the logarithm of rates told over true ones, by job and GPU type
    max_growth: float | None = None  # a job may hold at most so many times the most GPUs it has held; None: no such limit
    mean_hours_between_failures: float | None = None  # of a node; None: none fails
    repair_hours: float = 1.0
    checkpoint_s: float = 600.0  # between checkpoints: what a failure loses on average is half of it
    seed: int = 0
    max_hours: float = 24 * 90.0

    def __post_init__(self) -> None:
        if not self.round_s > 0:
            raise UsageError(f"rounds of {self.round_s:g} s; give a number above 0")
        if self.work_error is not None and not 0 <= self.work_error < 1:
            raise UsageError(f"an error of {self.work_error:g} in the declared work; give a share from 0 to below 1, such as 0.3")
        if self.mean_hours_between_failures is not None and not self.mean_hours_between_failures > 0:
            raise UsageError(f"{self.mean_hours_between_failures:g} hours between failures; give a number above 0")


@dataclass(frozen=True, kw_only=True)
class Span:
    """What one job held from when to when: a bar of a Gantt chart."""

    job_id: str
    allocation: Allocation
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class FinishedJob:
    job_id: str
    job_type: str
    submit_s: float
    start_s: float
    end_s: float
    num_restarts: int
    gpu_seconds: float
    mean_contention: float  # jobs in the system while it was, averaged over time
    weight: float

    @property
    def jct_s(self) -> float:
        return self.end_s - self.submit_s


@dataclass(frozen=True, kw_only=True)
class SimulationRun:
    policy: str
    jobs: tuple[FinishedJob, ...]  # in order of the trace
    spans: tuple[Span, ...]
    failures: tuple[tuple[float, str], ...]  # (when, node_id)
    gpu_seconds_by_type: dict[str, float]
    end_s: float
    plan_seconds: tuple[float, ...]  # wall-clock time of each call of the policy; not deterministic
