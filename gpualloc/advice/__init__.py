"""Will more GPUs pay for this job? Measurements, rehearsals and forecasts in; a table, a choice, an order of steps and its cost out.

Pure functions over records: nothing here reads a store or prints.
"""

from gpualloc.advice.advise import advise
from gpualloc.advice.evidence import Evidence, select_evidence
from gpualloc.advice.job import Job, make_job
from gpualloc.advice.records import Advice, Crossing, Option, Step

__all__ = ["Advice", "Crossing", "Evidence", "Job", "Option", "Step", "advise", "make_job", "select_evidence"]
