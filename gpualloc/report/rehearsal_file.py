"""What `gpualloc rehearse --json` printed, as far as a report shows it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Open(BaseModel):
    """Fields that are not shown may be there."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RehearsedSteps(_Open):
    device: str
    step_time_s: _Positive
    step_time_low_s: _Positive
    step_time_high_s: _Positive
    compute_time_s: _NotNegative
    exposed_comm_s: _NotNegative


class RehearsedNumber(_Open):
    num_gpus: Annotated[int, Field(ge=1)]
    steps: RehearsedSteps | None
    failure: str | None = None
    speedup: _Positive | None = None


class RehearsalFile(_Open):
    command: str
    scaling: Literal["weak", "strong"]
    sizes: tuple[RehearsedNumber, ...]
    limits: str = ""
