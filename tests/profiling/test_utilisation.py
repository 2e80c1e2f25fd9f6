"""NVML's counters, from a made-up library that counts what is opened and freed."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from gpualloc.profiling import utilisation
from gpualloc.profiling.utilisation import GpuCounters

UUID = "abc"


class FakeNvml(types.ModuleType):
    """One GPU."""

    NVML_SUCCESS, NVML_GPM_METRICS_GET_VERSION = 0, 1
    NVML_GPM_METRIC_SM_UTIL, NVML_GPM_METRIC_ANY_TENSOR_UTIL, NVML_GPM_METRIC_DRAM_BW_UTIL = 2, 5, 10

    class NVMLError(Exception):
        pass

    def __init__(self, *, has_gpm: bool = True, is_mig: bool = False, sampling_fails: bool = False) -> None:
        super().__init__("pynvml")
        self.num_open, self.num_samples, self.num_taken = 0, 0, 0
        self._has_gpm, self._is_mig, self._sampling_fails = has_gpm, is_mig, sampling_fails

    def nvmlInit(self) -> None:
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        assert self.num_samples == 0
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return "gpu"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return f"GPU-{UUID}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        raise self.NVMLError("Not Found")

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> bool:
        return self._is_mig

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:
        return types.SimpleNamespace(isSupportedDevice=int(self._has_gpm))

    def nvmlGpmSampleAlloc(self) -> list[int]:
        self.num_samples += 1
        return []

    def nvmlGpmSampleFree(self, sample: list[int]) -> None:
        self.num_samples -= 1

    def nvmlGpmSampleGet(self, handle: str, sample: list[int]) -> list[int]:
        if self._sampling_fails:
            raise self.NVMLError("Insufficient Permissions")
        self.num_taken += 1
        sample.append(self.num_taken)
        return sample

    def c_nvmlGpmMetricsGet_t(self) -> Any:
        return types.SimpleNamespace(metrics=[types.SimpleNamespace() for _ in range(4)])

    def nvmlGpmMetricsGet(self, request: Any) -> None:
        assert (request.sample1, request.sample2, request.numMetrics, request.version) == ([1], [2], 3, 1)
        values = {2: (0, 80.0), 5: (0, 25.0), 10: (3, 0.0)}
        for metric in request.metrics[: request.numMetrics]:
            metric.nvmlReturn, metric.value = values[metric.metricId]

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return types.SimpleNamespace(gpu=97)


def read(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml, uuid: str = UUID, *, min_window_s: float = 0.0) -> Any:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(utilisation, "MIN_WINDOW_S", min_window_s)
    counters = GpuCounters(uuid)
    counters.start()
    found = counters.stop()
    assert (nvml.num_open, nvml.num_samples) == (0, 0)
    return found


def test_counters_are_fractions_and_those_that_fail_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, FakeNvml())
    assert (found.gpu, found.sm, found.tensor, found.dram, found.reason) == (0.97, 0.8, 0.25, None, None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"has_gpm": False}, "this GPU has no GPM counters"),
        ({"is_mig": True}, "GPM counts whole GPUs and this is a MIG slice"),
        ({"sampling_fails": True}, "GPM does not answer: Insufficient Permissions"),
    ],
)
def test_without_gpm_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], reason: str) -> None:
    found = read(monkeypatch, FakeNvml(**options))
    assert (found.gpu, found.sm, found.reason) == (0.97, None, reason)


def test_too_short_a_time_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, FakeNvml(), min_window_s=60.0)
    assert (found.gpu, found.sm) == (0.97, None)
    assert found.reason.startswith("the timed steps took 0 ms and GPM needs 60000")


def test_an_unknown_gpu_has_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, FakeNvml(), uuid="other") is None


@pytest.mark.gpu
def test_a_real_gpu_answers() -> None:
    import torch

    counters = GpuCounters(str(torch.cuda.get_device_properties(0).uuid))
    counters.start()
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(400):
        a = (a @ a).clamp(-1, 1)
    torch.cuda.synchronize()
    found = counters.stop()
    assert found is not None
    if found.reason is None:
        assert found.sm is not None
        assert found.tensor is not None
        assert 0.3 < found.tensor <= found.sm <= 1.01
