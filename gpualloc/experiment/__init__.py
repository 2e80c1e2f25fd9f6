"""A guided experiment: the smallest set of runs that answers a question, one step after the other, until the answer is certain enough."""

from gpualloc.experiment.conclusion import Conclusion, conclude
from gpualloc.experiment.plan import Done, Question, Step, make_question, next_step
from gpualloc.experiment.run import run_steps

__all__ = ["Conclusion", "Done", "Question", "Step", "conclude", "make_question", "next_step", "run_steps"]
