"""One look at a device and at the processes on it. None is what the device or the system does not tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

DeviceKind = Literal["gpu", "mig", "cpu"]  # a GPU, a MIG slice of one, or a whole host without regard to its GPUs


@dataclass(frozen=True, kw_only=True)
class ProcessSample:
    """A process on a device."""

    pid: int  # as the driver counts, which in a container can be another number than the container's own
    started_unix_s: float | None  # tells processes apart that had the same pid one after the other
    user: str | None
    command: str | None  # program and script; arguments can hold secrets and are left out
    gpu_memory_bytes: int | None
    sm_utilisation_percent: float | None  # share of the time in which a kernel of this process ran
    cpu_percent: float | None  # of one core, since the sample before
    rss_bytes: int | None  # host memory


@dataclass(frozen=True, kw_only=True)
class DeviceSample:
    """A device at one moment."""

    time_unix_s: float
    covers_s: float | None  # the time before that this sample speaks for, by the monotonic clock; None after a start or a gap
    host: str
    kind: str  # a DeviceKind
    device_uuid: str  # "GPU-...", "MIG-...", "host-..."
    device_index: int | None  # in the driver's order; None for a slice and for a host
    device_name: str
    utilisation_percent: float | None = None  # of a GPU: share of the time in which a kernel ran; of a host: busy share of all cores
    utilisation_readings: int | None = None  # how many readings of the driver it averages; 1: the driver's last period alone
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None  # drawn since the sample before
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    temperature_c: int | None = None
    throttle_reasons: tuple[str, ...] | None = None  # why the clocks are lower than they could be; () where nothing holds them
    processes: tuple[ProcessSample, ...] | None  # None: not known; () where there are none

    @property
    def time_utc(self) -> str:
        """ISO 8601 to the millisecond."""
        return datetime.fromtimestamp(self.time_unix_s, timezone.utc).isoformat(timespec="milliseconds")

    def to_json(self) -> dict[str, Any]:
        """Plain data, with `time_utc` for people."""
        return {"time_utc": self.time_utc, **asdict(self)}


def from_json(data: dict[str, Any]) -> DeviceSample:
    """What `to_json` made, back."""
    fields = {name: value for name, value in data.items() if name != "time_utc"}
    for name, make in (("throttle_reasons", str), ("processes", lambda row: ProcessSample(**row))):
        if fields[name] is not None:
            fields[name] = tuple(make(item) for item in fields[name])
    return DeviceSample(**fields)
