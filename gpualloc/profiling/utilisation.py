"""How much of the GPU was used between two moments, by NVML's counters: GPM's where the GPU has them (Hopper and later)."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any

from gpualloc.bench import nvml
from gpualloc.profiling.records import Utilisation

MIN_WINDOW_S = 0.1  # a precaution: NVML's reference names no shortest interval, and counters that have not moved yet would read as idle


class GpuCounters:
    """Samples a GPU at `start` and `stop`; the counters are those of the whole GPU, of all processes."""

    def __init__(self, uuid: str) -> None:
        self._open = ExitStack()
        self._reason: str | None = "NVML does not answer"
        self._sample: Any = None
        self._found: tuple[Any, Any] | None = None
        self._uuid = uuid
        self._started_s = 0.0

    def start(self) -> None:
        self._found = self._open.enter_context(nvml.opened_gpu(self._uuid))
        if self._found is None:
            return
        pynvml, gpu = self._found
        try:
            if pynvml.nvmlDeviceIsMigDeviceHandle(gpu):
                self._reason = "GPM counts whole GPUs and this is a MIG slice"
            elif not pynvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice:
                self._reason = "this GPU has no GPM counters"
            else:
                self._sample = self._take(pynvml, gpu)
                self._started_s = time.monotonic()
                self._reason = None
        except pynvml.NVMLError as error:
            self._reason = f"GPM does not answer: {error}"

    def stop(self) -> Utilisation | None:
        """Of the time since `start`; None where NVML does not answer at all."""
        with self._open:
            if self._found is None:
                return None
            pynvml, gpu = self._found
            figures: dict[str, float | None] = dict.fromkeys(("sm", "tensor", "dram"))
            window_s = time.monotonic() - self._started_s
            if self._sample is not None and window_s < MIN_WINDOW_S:
                self._reason = f"the timed steps took {window_s * 1e3:.0f} ms and GPM needs {MIN_WINDOW_S * 1e3:.0f}: raise --steps"
            elif self._sample is not None:
                try:
                    figures = self._read(pynvml, self._take(pynvml, gpu))
                except pynvml.NVMLError as error:
                    self._reason = f"GPM does not answer: {error}"
            try:
                busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
            except pynvml.NVMLError:
                busy = None
            return Utilisation(gpu=busy, **figures, reason=self._reason)

    def _take(self, pynvml: Any, gpu: Any) -> Any:
        sample = pynvml.nvmlGpmSampleAlloc()
        self._open.callback(pynvml.nvmlGpmSampleFree, sample)
        return pynvml.nvmlGpmSampleGet(gpu, sample)

    def _read(self, pynvml: Any, last: Any) -> dict[str, float | None]:
        wanted = {
            "sm": pynvml.NVML_GPM_METRIC_SM_UTIL,
            "tensor": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
            "dram": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
        }
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(wanted)
        request.sample1, request.sample2 = self._sample, last
        for index, metric in enumerate(wanted.values()):
            request.metrics[index].metricId = metric
        pynvml.nvmlGpmMetricsGet(request)
        figures: dict[str, float | None] = {}
        for index, name in enumerate(wanted):
            answer = request.metrics[index]
            is_known = answer.nvmlReturn == pynvml.NVML_SUCCESS and math.isfinite(answer.value)
            figures[name] = answer.value / 100 if is_known else None
        return figures
