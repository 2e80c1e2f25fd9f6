"""The workloads file: what is to be trained, within which limits. YAML or JSON, checked before anything else happens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gpualloc.bench.precision import PRECISIONS
from gpualloc.errors import UsageError
from gpualloc.plan.file_errors import read_user_file
from gpualloc.strategies import HOOKS, STRATEGIES

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=10**15)]  # beyond any, and still exact as a float
_Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s/\\]+$")]  # it names log files, too
_MAX_GPUS = 2**16
_DEFAULT_RESTART_COST_S = 60.0  # an assumption: stop, read the checkpoint, start the processes


def _choices(allowed: Sequence[str]) -> Any:
    return Literal[tuple(allowed)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MoneyLimit(_Data):
    value: _Positive
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class BatchPolicy(_Data):
    """A fixed global batch, or a range of them with the rule by which the learning rate follows."""

    global_batch_size: _Count | None = None
    min_global_batch_size: _Count | None = None
    max_global_batch_size: _Count | None = None
    reference_global_batch_size: _Count | None = None  # that the learning rate is meant for
    learning_rate_rule: Literal["linear", "sqrt", "constant"] | None = None
    max_per_device_batch_size: _Count | None = None

    @model_validator(mode="after")
    def _check(self) -> BatchPolicy:
        ends = (self.min_global_batch_size, self.max_global_batch_size)
        if self.global_batch_size is not None:
            if ends != (None, None) or self.reference_global_batch_size is not None or self.learning_rate_rule is not None:
                raise ValueError("global_batch_size is fixed; leave the range, its reference and its learning-rate rule out")
            return self
        if None in ends:
            raise ValueError("give global_batch_size, or min_global_batch_size and max_global_batch_size")
        if self.learning_rate_rule is None:
            raise ValueError("a range needs learning_rate_rule: 'linear', 'sqrt' or 'constant'")
        if ends[0] > ends[1]:  # type: ignore[operator]
            raise ValueError(f"min_global_batch_size {ends[0]} is above max_global_batch_size {ends[1]}")
        return self

    @property
    def reference(self) -> int:
        """The global batch that `steps` and the learning rate refer to."""
        fixed = self.global_batch_size or self.reference_global_batch_size or self.min_global_batch_size
        assert fixed is not None
        return fixed

    @property
    def bounds(self) -> tuple[int, int]:
        if self.global_batch_size is not None:
            return self.global_batch_size, self.global_batch_size
        assert self.min_global_batch_size is not None
        assert self.max_global_batch_size is not None
        return self.min_global_batch_size, self.max_global_batch_size

    def learning_rate_factor(self, global_batch_size: int) -> float:
        """Linear: Goyal et al. 2017, arXiv:1706.02677, 2.1; square root: Krizhevsky 2014, arXiv:1404.5997, 5."""
        ratio = global_batch_size / self.reference
        factors: dict[str, float] = {"linear": ratio, "sqrt": math.sqrt(ratio)}
        return factors.get(self.learning_rate_rule or "constant", 1.0)


class TableRate(_Data):
    """A rate that the user knows. What is left out is what the workload allows first."""

    gpu_type: str
    num_gpus: Annotated[int, Field(ge=1, le=_MAX_GPUS)]
    num_nodes: _Count = 1
    samples_per_s: _Positive | None = None
    step_time_s: _Positive | None = None  # of one optimizer step
    low: _Positive | None = None  # the slow end, in the unit of whichever is given: for a step time it is the larger figure
    high: _Positive | None = None
    strategy: _choices(STRATEGIES) | None = None  # type: ignore[valid-type]
    precision: _choices(PRECISIONS) | None = None  # type: ignore[valid-type]
    hook: _choices(HOOKS) | None = None  # type: ignore[valid-type]
    per_device_batch_size: _Count | None = None
    memory_gib: _Positive | None = None  # most that a GPU has in use then

    @model_validator(mode="after")
    def _check(self) -> TableRate:
        if (self.samples_per_s is None) == (self.step_time_s is None):
            raise ValueError("give one of samples_per_s and step_time_s")
        if self.num_gpus % self.num_nodes:
            raise ValueError(f"num_gpus {self.num_gpus} cannot be divided equally among num_nodes {self.num_nodes}")
        value = self.samples_per_s or self.step_time_s
        slow, fast = (self.low, self.high) if self.samples_per_s is not None else (self.high, self.low)
        for end, is_right in (("low", slow is None or slow <= value), ("high", fast is None or fast >= value)):  # type: ignore[operator]
            if not is_right:
                raise ValueError(f"the interval from low {self.low} to high {self.high} does not hold {value:g} ({end} end)")
        return self


class Workload(_Data):
    """One training job."""

    name: _Name
    kind: Literal["image", "llm"]
    model: Annotated[str, Field(min_length=1)]
    image_size_px: _Count | None = None
    sequence_length: _Count | None = None
    tuning: Literal["full", "lora"] = "full"
    dataset_size: _Count | None = None  # samples: images or sequences
    epochs: _Positive | None = None
    steps: _Count | None = None  # optimizer steps at the reference batch
    samples_done: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    batch: BatchPolicy
    precisions: Annotated[list[_choices(PRECISIONS)], Field(min_length=1)] = ["fp32"]  # type: ignore[valid-type]
    strategies: Annotated[list[_choices(STRATEGIES)], Field(min_length=1)] = ["single", "ddp"]  # type: ignore[valid-type]
    hooks: Annotated[list[_choices(HOOKS)], Field(min_length=1)] | None = None  # type: ignore[valid-type]
    min_gpus: Annotated[int, Field(ge=1, le=_MAX_GPUS)] = 1
    max_gpus: Annotated[int, Field(ge=1, le=_MAX_GPUS)] = 8
    gpu_types: Annotated[list[str], Field(min_length=1)] | None = None
    min_efficiency: Annotated[float, Field(ge=0, le=1)] | None = None  # None: the command's --min-efficiency
    weight: _Positive = 1.0  # its importance; 2 counts as two workloads
    deadline_h: _Positive | None = None  # from the time of planning
    budget: MoneyLimit | None = None
    preemptible: bool = True
    restart_cost_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _DEFAULT_RESTART_COST_S
    max_restarts: Annotated[int, Field(ge=0)] = 3
    may_share_gpu: bool = False
    command: Annotated[list[str], Field(min_length=1)] | None = None
    checkpoint: str | None = None
    environment: dict[str, str] = {}
    rates: list[TableRate] = []

    @field_validator("command", mode="before")
    @classmethod
    def _check_command(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("write the command as a list of arguments, such as [python, train.py]")
        return value

    @model_validator(mode="after")
    def _check(self) -> Workload:
        size, other = ("image_size_px", "sequence_length") if self.kind == "image" else ("sequence_length", "image_size_px")
        if getattr(self, size) is None:
            raise ValueError(f"kind {self.kind!r} needs {size}")
        if getattr(self, other) is not None:
            raise ValueError(f"kind {self.kind!r} has no {other}")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of epochs and steps")
        if self.epochs is not None and self.dataset_size is None:
            raise ValueError("epochs need dataset_size, in samples")
        if self.min_gpus > self.max_gpus:
            raise ValueError(f"min_gpus {self.min_gpus} is above max_gpus {self.max_gpus}")
        return self

    @property
    def total_samples(self) -> float:
        if self.steps is not None:
            return float(self.steps * self.batch.reference)
        assert self.dataset_size is not None
        assert self.epochs is not None
        return self.dataset_size * self.epochs

    @property
    def is_done(self) -> bool:
        return (self.samples_done or 0.0) >= self.total_samples


class Sharing(_Data):
    """How much slower two workloads are on one GPU, as it was measured; each must allow it with may_share_gpu."""

    workloads: Annotated[list[str], Field(min_length=2, max_length=2)]
    gpu_type: str
    slowdown: dict[str, Annotated[float, Field(ge=1, allow_inf_nan=False)]]  # workload -> its step time with the other / alone
    source: Annotated[str, Field(min_length=1)]  # where and when it was measured

    @model_validator(mode="after")
    def _check(self) -> Sharing:
        if len(set(self.workloads)) != 2 or set(self.slowdown) != set(self.workloads):
            raise ValueError(f"slowdown needs a figure for each of the two workloads {self.workloads}")
        return self


class WorkloadsFile(_Data):
    workloads: list[Workload]
    sharing: list[Sharing] = []

    @model_validator(mode="after")
    def _check(self) -> WorkloadsFile:
        names = [workload.name for workload in self.workloads]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]!r} is given to several workloads; each needs one of its own")
        for entry in self.sharing:
            for name in entry.workloads:
                if name not in names:
                    raise ValueError(f"sharing names {name!r}, which is no workload; choose of {', '.join(names)}")
        return self


def without_done(file: WorkloadsFile) -> WorkloadsFile:
    """Those with samples left, and the sharing among them."""
    left = [each for each in file.workloads if not each.is_done]
    names = {each.name for each in left}
    return file.model_copy(update={"workloads": left, "sharing": [each for each in file.sharing if set(each.workloads) <= names]})


def read_workloads(path: Path, *, may_be_empty: bool = False) -> WorkloadsFile:
    """The file, checked, with models that exist.

    Raises:
        UsageError: names the file, the place in it and what is allowed.
    """
    from gpualloc.workloads import find_model

    file = read_user_file(path, WorkloadsFile, what="workloads file")
    if not file.workloads and not may_be_empty:
        raise UsageError(f"{path}: workloads is empty; docs/plan.md has one to start from")
    for number, workload in enumerate(file.workloads):
        if ":" in workload.model and workload.rates:
            continue  # a model of one's own, with rates of one's own, need not be importable here
        try:
            find_model(workload.model, workload=workload.kind)
        except UsageError as error:
            raise UsageError(f"{path}: workloads[{number}].model: {error}") from error
    return file
