"""How much work a job is, and what it may cost and take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpualloc.errors import UsageError

Scaling = Literal["weak", "strong"]
_LARGEST = 10**15


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training to be finished.

    Weak scaling: every GPU keeps its batch, so that N GPUs take N times the samples a step. Strong: the global batch is divided among them.
    """

    scaling: Scaling = "weak"
    dataset_size: int | None = None  # samples of an epoch
    epochs: float | None = None
    steps: int | None = None  # of weak scaling: counted with one GPU's batch, so that the samples are the same on any number
    global_batch_size: int | None = None  # of strong scaling
    deadline_s: float | None = None
    budget: float | None = None  # in the price's currency

    def num_samples(self, batch_size: int) -> float | None:
        """Samples of the whole training; None where the job's size is not known.

        Args:
            batch_size: global batch of one GPU, which steps are counted with in weak scaling.
        """
        if self.steps is not None:
            return float(self.steps * (self.global_batch_size or batch_size))
        if self.dataset_size is not None and self.epochs is not None:
            return self.dataset_size * self.epochs
        return None

    @property
    def described(self) -> str:
        """ "90 epochs of 1,281,167 samples"; "" where the size is not known."""
        if self.steps is not None:
            return f"{self.steps:,} steps"
        if self.dataset_size is not None and self.epochs is not None:
            return f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'} of {self.dataset_size:,} samples"
        return ""


def make_job(
    *,
    dataset_size: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    global_batch_size: int | None = None,
    deadline_s: float | None = None,
    budget: float | None = None,
) -> Job:
    """The job as the options describe it; strong scaling where a global batch size is given.

    Raises:
        UsageError: a number out of range, or options that contradict each other.
    """
    for option, value in (
        ("--dataset-size", dataset_size),
        ("--epochs", epochs),
        ("--steps", steps),
        ("--global-batch-size", global_batch_size),
    ):
        if value is not None and not 0 < value <= _LARGEST:
            seen = "of hundreds of digits" if value > 1e300 else f"{value:g}"  # which no float can hold
            raise UsageError(f"{option} {seen} is out of range; choose a number above 0, up to {_LARGEST:,}")
    if budget is not None and not 0 < budget < math.inf:
        raise UsageError(f"--budget {budget:g} is out of range; choose an amount above 0")
    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs both say how long the job is; leave one of them out")
    if epochs is not None and dataset_size is None:
        raise UsageError("--epochs needs the samples of one: add --dataset-size, or give --steps")
    if (deadline_s is not None or budget is not None) and steps is None and dataset_size is None:
        raise UsageError("a deadline or a budget needs the size of the job: add --dataset-size and --epochs, or --steps")
    return Job(
        scaling="weak" if global_batch_size is None else "strong",
        dataset_size=dataset_size,
        epochs=1.0 if dataset_size is not None and epochs is None and steps is None else epochs,
        steps=steps,
        global_batch_size=global_batch_size,
        deadline_s=deadline_s,
        budget=budget,
    )
