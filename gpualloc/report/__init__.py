"""Records in, one self-contained HTML file out, for the one who decides and for the one who checks."""

from gpualloc.report.inputs import MeasuredRun, ReportInputs, Study, Watched
from gpualloc.report.render import encode, render

__all__ = ["MeasuredRun", "ReportInputs", "Study", "Watched", "encode", "render"]
