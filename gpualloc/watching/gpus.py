"""What NVML, the driver's management library, says of the GPUs again and again, over one connection to it.

Each question is asked by itself: a GPU that does not support one, or that fell off the bus, answers None there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gpualloc.bench.nvml import POWER_CAP, SLOWDOWNS
from gpualloc.errors import GpuallocError

_MAX_PERCENT = 100  # above it the driver's figure is known to be garbage
_RECENT_US = 1_000_000  # how far back the first look at processes goes
_Answer = TypeVar("_Answer")


class NoGpusError(GpuallocError):
    """NVML, or a GPU, is not there; the message says which."""


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process with a context on a GPU."""

    pid: int
    gpu_memory_bytes: int | None
    sm_utilisation_percent: float | None


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """A GPU or a MIG slice at one moment; the fields mean what they mean in `DeviceSample`."""

    kind: str
    uuid: str
    index: int | None
    name: str
    utilisation_percent: float | None = None
    utilisation_readings: int | None = None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    temperature_c: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    processes: tuple[GpuProcess, ...] | None


@dataclass(frozen=True, kw_only=True)
class GpuPlace:
    """Where a GPU is among the others of its machine."""

    nvlinked: frozenset[str]  # UUIDs of the GPUs it reaches over NVLink, through a switch or directly
    pci_bus_id: str | None  # "00000000:1B:00.0"


@dataclass(kw_only=True)
class _Device:
    kind: str
    handle: Any
    uuid: str
    index: int | None
    name: str
    utilisation_until_us: int = 0  # the driver's clock at the newest reading seen
    processes_until_us: int = 0
    energy_mj: int | None = None


class GpuReader:
    """The GPUs of this machine, visible to CUDA or not, and the MIG slices they are cut into.

    Args:
        wanted: indices or (beginnings of) UUIDs; empty for all.
        nvml: the pynvml module, or what stands in for it.

    Raises:
        NoGpusError: no driver, no GPU, or none of those wanted.
    """

    def __init__(self, wanted: tuple[str, ...] = (), nvml: Any = None) -> None:
        self._nvml = nvml if nvml is not None else _import_nvml()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise NoGpusError(f"the NVIDIA driver does not answer ({error}); see gpualloc doctor") from error
        try:
            self._devices = _find_devices(self._nvml, wanted)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._maybe(self._nvml.nvmlShutdown)

    @property
    def num_devices(self) -> int:
        """GPUs, and MIG slices beside them."""
        return len(self._devices)

    def read(self) -> list[GpuReading]:
        return [self._read_slice(device) if device.kind == "mig" else self._read_gpu(device) for device in self._devices]

    def places(self) -> dict[str, GpuPlace]:
        """UUID -> place, of whole GPUs."""
        nvml, gpus = self._nvml, [device for device in self._devices if device.kind == "gpu"]

        def is_nvlinked(a: _Device, b: _Device) -> bool:
            status = self._maybe(lambda: int(nvml.nvmlDeviceGetP2PStatus(a.handle, b.handle, nvml.NVML_P2P_CAPS_INDEX_NVLINK)))
            return bool(status == nvml.NVML_P2P_STATUS_OK)

        def bus_id(device: _Device) -> str | None:
            info = self._maybe(lambda: nvml.nvmlDeviceGetPciInfo(device.handle))
            return None if info is None else _text(info.busId)

        return {
            a.uuid: GpuPlace(
                nvlinked=frozenset(b.uuid for b in gpus if b.uuid != a.uuid and is_nvlinked(a, b)),
                pci_bus_id=bus_id(a),
            )
            for a in gpus
        }

    def _read_gpu(self, device: _Device) -> GpuReading:
        nvml, handle = self._nvml, device.handle
        utilisation = self._read_utilisation(device)
        used, total = self._read_memory(handle)
        reasons = self._maybe(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))
        return GpuReading(
            kind=device.kind,
            uuid=device.uuid,
            index=device.index,
            name=device.name,
            utilisation_percent=utilisation[0],
            utilisation_readings=utilisation[1],
            memory_used_bytes=used,
            memory_total_bytes=total,
            power_w=_watts(self._maybe(lambda: nvml.nvmlDeviceGetPowerUsage(handle))),
            power_limit_w=_watts(self._maybe(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))),
            energy_j=self._read_energy(device),
            sm_clock_mhz=self._maybe(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            mem_clock_mhz=self._maybe(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
            temperature_c=self._maybe(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            throttle_reasons=None if reasons is None else _reasons(reasons),
            processes=self._read_processes(device),
        )

    def _read_slice(self, device: _Device) -> GpuReading:
        """A slice has memory and processes of its own; NVML tells power, heat and clocks of the whole GPU, and no utilisation."""
        used, total = self._read_memory(device.handle)
        return GpuReading(
            kind=device.kind,
            uuid=device.uuid,
            index=device.index,
            name=device.name,
            memory_used_bytes=used,
            memory_total_bytes=total,
            processes=self._read_processes(device),
        )

    def _read_utilisation(self, device: _Device) -> tuple[float | None, int | None]:
        """(percent, readings averaged): the mean of what the driver noted since the look before, else its last period."""
        nvml = self._nvml
        momentary = self._maybe(lambda: int(nvml.nvmlDeviceGetUtilizationRates(device.handle).gpu))
        noted = self._maybe(
            lambda: nvml.nvmlDeviceGetSamples(device.handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, device.utilisation_until_us)
        )
        if noted is not None:
            value_type, rows = noted
            since_us, is_first = device.utilisation_until_us, device.utilisation_until_us == 0
            fresh = [int(row.sampleValue.uiVal) for row in rows if int(row.timeStamp) > since_us]
            device.utilisation_until_us = max([since_us, *(int(row.timeStamp) for row in rows)])
            is_sound = value_type == nvml.NVML_VALUE_TYPE_UNSIGNED_INT and all(value <= _MAX_PERCENT for value in fresh)
            if fresh and is_sound and not is_first:  # at first the driver tells of the time before, too
                return sum(fresh) / len(fresh), len(fresh)
        if momentary is None or momentary > _MAX_PERCENT:
            return None, None
        return float(momentary), 1

    def _read_memory(self, handle: Any) -> tuple[int | None, int | None]:
        nvml = self._nvml
        # Version 2 leaves out what the driver reserves for itself, as nvidia-smi does.
        memory = self._maybe(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2))
        memory = memory or self._maybe(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        return (None, None) if memory is None else (int(memory.used), int(memory.total))

    def _read_energy(self, device: _Device) -> float | None:
        """Joules since the look before, by the counter that the GPU keeps."""
        before, now = device.energy_mj, self._maybe(lambda: int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device.handle)))
        device.energy_mj = now
        return None if before is None or now is None or now < before else (now - before) / 1e3

    def _read_processes(self, device: _Device) -> tuple[GpuProcess, ...] | None:
        nvml = self._nvml
        compute = self._maybe(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(device.handle))
        if compute is None:
            return None
        graphics = self._maybe(lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(device.handle)) or []
        memory_of = {int(row.pid): row.usedGpuMemory for row in [*graphics, *compute]}
        busy = self._read_process_utilisation(device) if memory_of else {}
        return tuple(
            GpuProcess(pid=pid, gpu_memory_bytes=None if memory is None else int(memory), sm_utilisation_percent=busy.get(pid))
            for pid, memory in sorted(memory_of.items())
        )

    def _read_process_utilisation(self, device: _Device) -> dict[int, float]:
        since_us = device.processes_until_us or int(time.time() * 1e6) - _RECENT_US
        rows = self._maybe(lambda: self._nvml.nvmlDeviceGetProcessUtilization(device.handle, since_us)) or []
        readings: dict[int, list[int]] = {}
        for row in rows:
            if int(row.timeStamp) > since_us and int(row.smUtil) <= _MAX_PERCENT:
                readings.setdefault(int(row.pid), []).append(int(row.smUtil))
        device.processes_until_us = max([since_us, *(int(row.timeStamp) for row in rows)])
        return {pid: sum(values) / len(values) for pid, values in readings.items()}

    def _maybe(self, ask: Callable[[], _Answer]) -> _Answer | None:
        try:
            return ask()
        except self._nvml.NVMLError:
            return None


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise NoGpusError("pynvml is missing; install it with: pip install nvidia-ml-py") from error
    return pynvml


def _find_devices(nvml: Any, wanted: tuple[str, ...]) -> list[_Device]:
    devices: list[_Device] = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
            devices.append(_Device(kind="gpu", handle=handle, uuid=uuid, index=index, name=name))
            devices += _find_slices(nvml, handle)
    except nvml.NVMLError as error:
        raise NoGpusError(f"the NVIDIA driver does not tell its GPUs ({error}); see gpualloc doctor") from error
    if not devices:
        raise NoGpusError("the NVIDIA driver has no GPU; see gpualloc doctor")
    chosen = [device for device in devices if not wanted or any(_is_named(device, name) for name in wanted)]
    unknown = [name for name in wanted if not any(_is_named(device, name) for device in devices)]
    if unknown:
        there = ", ".join(device.uuid if device.index is None else f"{device.index} ({device.uuid})" for device in devices)
        raise NoGpusError(f"--gpu {unknown[0]!r} names no GPU of this machine, which has: {there}")
    return chosen


def _find_slices(nvml: Any, gpu: Any) -> list[_Device]:
    slices = []
    try:
        if nvml.nvmlDeviceGetMigMode(gpu)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        num_places = int(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu))
    except nvml.NVMLError:  # a GPU without MIG
        return []
    for place in range(num_places):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place)
            uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError:  # an empty place
            continue
        slices.append(_Device(kind="mig", handle=handle, uuid=uuid, index=None, name=name))
    return slices


def _is_named(device: _Device, name: str) -> bool:
    return name == str(device.index) if name.isdecimal() else bool(name) and device.uuid.startswith(name)


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(text for bit, text in {POWER_CAP: "power cap", **SLOWDOWNS}.items() if bits & bit)


def _watts(milliwatts: Any) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
