"""What counts as waste, and what is found: records of `gpualloc.watching.ledger`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_MAX_SLOT_S = 60.0
_SLOTS_PER_SPAN = 10

SpanKind = Literal["idle", "low"]


@dataclass(frozen=True, kw_only=True)
class WasteRule:
    """What counts as waste."""

    idle_below_percent: float = 5.0
    bar_percent: float = 40.0
    for_s: float = 600.0

    @property
    def slot_s(self) -> float:
        """Seconds over which utilisation is averaged before it is judged."""
        return min(_MAX_SLOT_S, self.for_s / _SLOTS_PER_SPAN)


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a device costs."""

    amount_per_hour: float
    currency: str


@dataclass(frozen=True, kw_only=True)
class WasteSpan:
    """A time in which a device was idle or low."""

    kind: SpanKind
    start_unix_s: float
    end_unix_s: float
    observed_s: float  # without gaps
    mean_utilisation_percent: float
    wasted_device_hours: float


@dataclass(frozen=True, kw_only=True)
class DeviceUse:
    """A device over all of its samples; means are over time."""

    host: str
    kind: str  # a DeviceKind
    device_uuid: str
    device_index: int | None
    device_name: str
    first_unix_s: float
    last_unix_s: float
    num_samples: int
    observed_s: float  # with a known utilisation
    unknown_s: float  # covered by samples, without one
    mean_utilisation_percent: float | None
    mean_memory_used_bytes: float | None
    peak_memory_used_bytes: int | None
    memory_total_bytes: int | None
    mean_power_w: float | None
    energy_j: float | None  # of the samples that know theirs
    is_judged: bool  # a host is not where it has GPUs, and nothing is whose utilisation is never known
    idle_s: float
    low_s: float
    spans: tuple[WasteSpan, ...]
    wasted_device_hours: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class ProcessUse:
    """A process on one device over all of its samples; means are over time."""

    host: str
    device_kind: str
    device_uuid: str
    device_index: int | None
    pid: int
    started_unix_s: float | None
    user: str | None
    command: str | None
    observed_s: float
    mean_sm_utilisation_percent: float | None  # over the time in which it is known
    peak_gpu_memory_bytes: int | None
    mean_cpu_percent: float | None  # of one core
    peak_rss_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class HolderWaste:
    """Waste by who was on the GPU meanwhile: processes share it evenly. All None: nobody was, or it is not known who."""

    who: Literal["process", "nobody", "unknown"]
    host: str | None
    pid: int | None
    user: str | None
    command: str | None
    wasted_device_hours: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class UserWaste:
    """Waste by user. None: nobody was on the GPU, or it is not known who."""

    who: Literal["user", "nobody", "unknown"]
    user: str | None
    wasted_device_hours: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class WasteReport:
    """All devices together. The totals are of GPUs; of hosts where no GPU was watched."""

    rule: WasteRule
    price: Price | None
    devices: tuple[DeviceUse, ...]
    processes: tuple[ProcessUse, ...]  # device by device, the longest first
    by_process: tuple[HolderWaste, ...]  # the most waste first; of GPUs alone
    by_user: tuple[UserWaste, ...]
    observed_device_hours: float
    wasted_device_hours: float
    cost: float | None


def cost_of(device_hours: float, price: Price | None) -> float | None:
    return None if price is None else device_hours * price.amount_per_hour
