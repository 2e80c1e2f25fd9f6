"""Step times on GPUs that were not measured, from those that were."""

from gpualloc.scaling.model import ScalingModel
from gpualloc.scaling.records import Forecast, StepQuery, StepRow, StepTerms, Suggestion

__all__ = ["Forecast", "ScalingModel", "StepQuery", "StepRow", "StepTerms", "Suggestion"]
