"""What is advised: one frozen record for each part of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpualloc.advice.job import Job
from gpualloc.findings import Interval
from gpualloc.money import BuyOrRent
from gpualloc.records import BenchCase

Source = Literal["measured", "rehearsed", "forecast"]
RatioSource = Literal["given", "measured", "published"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one GPU during a step."""

    num_bytes: int | None
    source: Literal["measured", "estimated", "unknown"]
    fits: bool | None  # None: not known


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run the job: a number of GPUs, a strategy, a precision, a batch size. Where the figures are None, `note` says why."""

    case: BenchCase
    source: Source
    num_gpus: int
    num_nodes: int
    global_batch_size: int
    memory: Memory
    samples_per_s: Interval | None = None
    speedup: Interval | None = None  # over one GPU in the same setting; of one GPU itself 1
    efficiency: Interval | None = None  # speedup / num_gpus
    cost_efficiency: Interval | None = None  # throughput over that of as many GPUs alone, each in the fastest setting of one
    time_s: Interval | None = None  # to finish the job
    gpu_hours: Interval | None = None  # of the job
    cost: Interval | None = None  # of the job
    cost_per_epoch: Interval | None = None
    cost_per_million_samples: Interval | None = None
    forecast_kind: str | None = None  # "interpolates", "extrapolates" or "refused"
    basis: tuple[str, ...] = ()  # what a forecast rests on
    note: str | None = None  # out of memory, failed, not enough evidence; what bounds a forecast
    is_chosen: bool = False
    why: str = ""  # it was chosen, or was not


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """From which image size, sequence length or batch size on a number of GPUs keeps the efficiency asked for."""

    axis: str  # "image_size_px", "sequence_length" or "per_device_batch_size"
    case: BenchCase  # of the series, at its largest value of the axis
    bar: float
    smallest: float  # value with an efficiency
    largest: float
    verdict: Literal["crosses", "from the smallest on", "not up to the largest"]
    value: float | None  # where the efficiency rises through the bar for good
    low: float | None  # where the upper end of its interval does: not earlier; None: at or below the smallest value
    high: float | None  # where the lower end does: not later; None: beyond the largest value, or unknown
    is_sure_at_largest: bool  # the lower end is at the bar or above there
    is_possible_at_largest: bool  # the upper end is
    has_intervals: bool  # of every point
    sources: tuple[Source, ...]


@dataclass(frozen=True, kw_only=True)
class LearningRateRule:
    """What a larger global batch asks of the learning rate."""

    from_batch_size: int
    to_batch_size: int
    factor: float | None  # None: no rule is known for the optimizer
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the way from the plainest setting to the one that is advised."""

    name: str  # "batch size", "precision", "pin_memory", "more GPUs", "strategy"
    decision: Literal["do", "leave", "measure"]
    change: str  # "32 -> 64 per GPU"
    gain: Interval | None  # samples per second over the setting before
    reason: str
    rule: LearningRateRule | None = None
    command: str | None = None  # that would tell more


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A price or a load that would turn the answer, solved exactly."""

    what: str  # "budget", "deadline", "value of an hour"
    text: str
    turns_at: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class RentOf:
    """The price that costs are counted with."""

    amount_per_gpu_hour: float
    currency: str
    described: str  # provider, source and date
    is_example: bool


@dataclass(frozen=True, kw_only=True)
class CarriedOver:
    """A number of GPUs of a kind that the workload was not measured on; of a refused one `note` says why. Intervals hold 90 %."""

    case: BenchCase  # as advised on the measured kind
    kind: Literal["carried over", "refused"]
    num_gpus: int
    num_nodes: int
    memory_bytes: int | None  # that each GPU needs; None: not known
    step_time_s: Interval | None = None
    samples_per_s: Interval | None = None
    speedup: Interval | None = None  # over as many GPUs of the measured kind
    time_s: Interval | None = None  # to finish the job
    cost: Interval | None = None  # of the job, in the rent's currency
    cost_per_million_samples: Interval | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class OtherGpu:
    """The advised setting on another kind of GPU."""

    device_name: str
    compute_ratio: float  # how many times as fast one computes as one of the measured kind
    link_ratio: float  # the same of links
    ratio_source: RatioSource
    described: str  # where the ratio of computing comes from
    rent: RentOf | None
    why_no_price: str | None
    options: tuple[CarriedOver, ...]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The whole answer, for one workload on one kind of device."""

    answer: tuple[str, ...]  # one to three sentences
    device_name: str
    job: Job
    min_efficiency: float
    rent: RentOf | None
    why_no_price: str | None
    options: tuple[Option, ...]
    crossings: tuple[Crossing, ...]
    steps: tuple[Step, ...]
    turns: tuple[Turn, ...]
    purchase: BuyOrRent | None
    measure_next: tuple[str, ...]  # commands, the most telling first
    is_certain: bool
    notes: tuple[str, ...]
    other_gpus: tuple[OtherGpu, ...] = ()  # as asked for

    @property
    def chosen(self) -> Option | None:
        """What is advised; None where nothing can be."""
        return next((option for option in self.options if option.is_chosen), None)
