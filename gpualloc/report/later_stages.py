"""Files of the stages after measuring, as far as a report shows them: forecast, advice, plan, simulation.

Only what is shown is checked; other fields may be there, so that a report can be made of files with more in them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class _Open(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PlannedDevice(_Open):
    node: str
    index: _Count


class PlannedRate(_Open):
    value: _NotNegative
    low: _NotNegative
    high: _NotNegative
    source: str = ""


class PlannedMoney(_Open):
    value: _NotNegative
    currency: str


class Assignment(_Open):
    workload: str
    devices: tuple[PlannedDevice, ...]
    gpu_type: str
    strategy: str
    precision: str
    hook: str
    per_device_batch_size: _Count
    start_s: _NotNegative
    finish_s: _NotNegative
    samples_per_s: PlannedRate
    cost: PlannedMoney | None = None


class Waiting(_Open):
    workload: str
    reason: str


class MeasuringSlot(_Open):
    workload: str
    devices: tuple[PlannedDevice, ...]
    start_s: _NotNegative
    finish_s: _NotNegative
    reason: str = ""


class PlannedNode(_Open):
    name: str
    gpu_type: str
    num_gpus: _Count


class PlannedCluster(_Open):
    name: str
    nodes: tuple[PlannedNode, ...]


class PlanFile(_Open):
    """What `gpualloc plan` writes."""

    schema_version: Literal[1, 2]
    created_at_utc: str
    objective: str
    cluster: PlannedCluster
    assignments: tuple[Assignment, ...]
    waiting: tuple[Waiting, ...] = ()
    measuring: tuple[MeasuringSlot, ...] = ()


class Bounds(_Open):
    value: _NotNegative
    low: _NotNegative | None = None
    high: _NotNegative | None = None


class AdvisedCase(_Open):
    model: str
    precision: str
    strategy: str
    hook: str
    per_device_batch_size: _Count


class AdvisedOption(_Open):
    case: AdvisedCase
    source: str  # "measured", "rehearsed" or "forecast"
    num_gpus: Annotated[int, Field(ge=1)]
    speedup: Bounds | None = None
    efficiency: Bounds | None = None
    time_s: Bounds | None = None
    cost: Bounds | None = None
    note: str | None = None
    is_chosen: bool = False
    why: str = ""


class AdvisedStep(_Open):
    name: str
    decision: str  # "do", "leave" or "measure"
    change: str
    gain: Bounds | None = None
    reason: str = ""


class AdvisedRent(_Open):
    currency: str
    described: str = ""


class AdviceFile(_Open):
    """What `gpualloc advise --json` prints."""

    answer: tuple[str, ...]
    device_name: str
    rent: AdvisedRent | None = None
    options: tuple[AdvisedOption, ...] = ()
    steps: tuple[AdvisedStep, ...] = ()
    measure_next: tuple[str, ...] = ()


class StepForecast(_Open):
    model: str
    num_gpus: Annotated[int, Field(ge=1)]
    per_device_batch_size: _Count | None = None
    image_size_px: _Count | None = None
    sequence_length: _Count | None = None
    precision: str | None = None
    step_time_s: _NotNegative | None
    low_s: _NotNegative | None = None
    high_s: _NotNegative | None = None
    kind: str
    reason: str | None = None


class ForecastFile(RootModel[tuple[StepForecast, ...]]):
    """What `gpualloc forecast predict --json` prints: step times with 90 % intervals, or why there is none."""


class SimulatedFigure(_Open):
    """Over the seeds; the interval is of the mean and may reach below 0."""

    mean: _Finite
    low: _Finite | None = None
    high: _Finite | None = None


class SimulatedPolicy(_Open):
    policy: str
    figures: dict[str, SimulatedFigure]


class SimulationFile(_Open):
    """What `gpualloc simulate --json` prints."""

    step_times: str = ""  # where they come from
    policies: tuple[SimulatedPolicy, ...]


class SimulatedSpan(_Open):
    job_id: str
    start_s: _NotNegative
    end_s: _NotNegative
    gpus_by_node: dict[str, _Count]


class SimulatedTimeline(_Open):
    policy: str
    spans: tuple[SimulatedSpan, ...]


class TimelineFile(RootModel[tuple[SimulatedTimeline, ...]]):
    """What `gpualloc simulate --timeline` writes: one for each policy."""
