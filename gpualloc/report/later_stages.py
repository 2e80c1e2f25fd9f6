"""Files of the stages after measuring, as far as a report shows them: forecast, advice, plan, simulation.

Only what is shown is checked; other fields may be there, so that a report can be made of files with more in them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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

    schema_version: Literal[1]
    created_at_utc: str
    objective: str
    cluster: PlannedCluster
    assignments: tuple[Assignment, ...]
    waiting: tuple[Waiting, ...] = ()
    measuring: tuple[MeasuringSlot, ...] = ()


class AdviceFile(_Open):
    """What `gpualloc advise --json` prints."""


class ForecastFile(_Open):
    """What `gpualloc forecast --json` prints."""


class SimulationFile(_Open):
    """What `gpualloc simulate --json` prints."""
