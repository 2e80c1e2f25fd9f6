"""A stand-in for pynvml: answers that are set by the test, and NVML's own errors for everything else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """`answers` holds, by the name of a call, a value or a function of the call's arguments."""

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVML_TEMPERATURE_GPU = 0
    NVML_GPU_UTILIZATION_SAMPLES = 1
    NVML_VALUE_TYPE_UNSIGNED_INT = 1
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 0x02000028

    def __init__(self, **answers: Any) -> None:
        self.num_shutdowns = 0
        self.answers: dict[str, Any] = {
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": lambda index: f"gpu{index}",
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle[-1] * 4}" if handle.startswith("gpu") else f"MIG-{handle}",
            "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
            **answers,
        }

    def nvmlInit(self) -> None:
        if "nvmlInit" in self.answers:
            raise FakeNvmlError(self.answers["nvmlInit"])

    def nvmlShutdown(self) -> None:
        self.num_shutdowns += 1

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Any:
            if name not in self.answers:
                raise FakeNvmlError("Not Supported")
            answer = self.answers[name]
            return answer(*arguments, **options) if callable(answer) else answer

        return call


def utilisation_samples(*rows: tuple[int, int], value_type: int = 1) -> Any:
    """(time in us, percent), all of them whatever is asked for, as some drivers do."""
    return value_type, [SimpleNamespace(timeStamp=at_us, sampleValue=SimpleNamespace(uiVal=percent)) for at_us, percent in rows]


def process_samples(*rows: tuple[int, int, int]) -> Any:
    """(pid, time in us, SM percent)."""
    return [SimpleNamespace(pid=pid, timeStamp=at_us, smUtil=percent) for pid, at_us, percent in rows]


def running(*rows: tuple[int, int | None]) -> Any:
    """(pid, bytes)."""
    return [SimpleNamespace(pid=pid, usedGpuMemory=num_bytes) for pid, num_bytes in rows]
