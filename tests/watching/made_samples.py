"""Samples with what a test is about, and usual figures for the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpualloc.watching import DeviceSample, ProcessSample

START_UNIX_S = 1_795_651_200.0  # a whole minute

GPU = DeviceSample(
    time_unix_s=START_UNIX_S,
    covers_s=5.0,
    host="node1",
    kind="gpu",
    device_uuid="GPU-0000",
    device_index=0,
    device_name="NVIDIA H100 80GB HBM3",
    utilisation_percent=90.0,
    utilisation_readings=30,
    memory_used_bytes=40 * 2**30,
    memory_total_bytes=80 * 2**30,
    power_w=600.5,
    power_limit_w=700.0,
    energy_j=3000.0,
    sm_clock_mhz=1980,
    mem_clock_mhz=2619,
    temperature_c=60,
    throttle_reasons=("power cap",),
    processes=(),
)
HOST = DeviceSample(
    **{
        **dict.fromkeys(DeviceSample.__dataclass_fields__),
        "time_unix_s": START_UNIX_S,
        "covers_s": 5.0,
        "host": "node1",
        "kind": "cpu",
        "device_uuid": "host-node1",
        "device_name": "AMD EPYC",
        "utilisation_percent": 10.0,
        "memory_used_bytes": 2**34,
        "memory_total_bytes": 2**38,
    }  # type: ignore[arg-type]
)


def process(pid: int = 4711, user: str | None = "ada", **changes: Any) -> ProcessSample:
    usual = ProcessSample(
        pid=pid,
        started_unix_s=START_UNIX_S - 100,
        user=user,
        command="python train.py",
        gpu_memory_bytes=30 * 2**30,
        sm_utilisation_percent=80.0,
        cpu_percent=101.0,
        rss_bytes=2**31,
    )
    return replace(usual, **changes)


def series(
    *parts: tuple[float, float | None], interval_s: float = 5.0, start_s: float = 0.0, of: DeviceSample = GPU, **changes: Any
) -> list[DeviceSample]:
    """(seconds, utilisation in percent) one after the other, a sample at the end of each interval."""
    samples, at_s = [], START_UNIX_S + start_s
    for seconds, percent in parts:
        for _ in range(round(seconds / interval_s)):
            at_s += interval_s
            samples.append(replace(of, time_unix_s=at_s, covers_s=interval_s, utilisation_percent=percent, **changes))
    return samples
