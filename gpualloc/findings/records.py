"""What was found out: one frozen record for each answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpualloc.findings.ratio import Interval
from gpualloc.records import BenchCase

DEFAULT_MIN_EFFICIENCY = 0.8


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What changing one field of a case, and nothing else, does to its speed."""

    question: str  # the field: "precision", "pin_memory", "channels_last", ...
    case: BenchCase  # with the change
    changed: str  # its value of the field
    base: str  # the other case's
    speedup: Interval  # samples per second, changed / base
    verdict: str  # "faster", "slower", "no difference seen", "not certain" (a single repeat)


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Whether a gain grows with the number of ranks."""

    question: str
    case: BenchCase  # with the change, on the most ranks
    changed: str
    base: str
    from_world_size: int
    change: Interval  # speed-up on the most ranks / speed-up on the fewest
    verdict: str  # "gains with more ranks", "loses with more ranks", "no difference seen", "not certain"


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Weak scaling: throughput over that of as many single processes, each rank with the same batch size."""

    case: BenchCase
    efficiency: Interval
    verdict: str  # "pays", "does not pay", "too close to call", "not certain" (a single repeat)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The smallest image size, sequence length or batch size from which a number of ranks pays."""

    axis: str  # "image_size_px", "sequence_length" or "per_device_batch_size"
    case: BenchCase  # of the series, at its largest value of the axis
    smallest: int  # value measured
    largest: int
    fails_at: int | None  # the largest value below the threshold with an efficiency certainly below the bar
    pays_from: int | None  # at this value and all larger ones measured it is certainly above
    estimate: float | None  # where the line between two measured points crosses the bar
    uncertain: tuple[int, ...]  # values below the threshold that are too close to call


@dataclass(frozen=True, kw_only=True)
class Best:
    """The fastest setting of a workload on a number of ranks, by samples per second."""

    case: BenchCase
    samples_per_s: float
    ties: tuple[BenchCase, ...]  # not told apart from it


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a run answers."""

    min_efficiency: float
    precision_gains: tuple[Gain, ...] = ()
    efficiencies: tuple[Efficiency, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    detail_gains: tuple[Gain, ...] = ()
    detail_trends: tuple[Trend, ...] = ()
    best: tuple[Best, ...] = ()
    num_without_baseline: int = 0  # cases on several ranks without the same case as a single process
    num_diverged: int = 0  # left out of `best` alone: inf or NaN in the loss
    excluded: dict[str, int] = field(default_factory=dict)  # why a measurement does not count -> how many
