"""What NVML, the driver's management library, says of the visible GPUs, without creating a CUDA context.

Everything is None or empty where there is no NVML, no driver or no answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# nvml.h (CUDA 13.0), nvmlClocksEventReason*: bits of nvmlDeviceGetCurrentClocksThrottleReasons.
POWER_CAP = 0x4
SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake"}


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The installed NVIDIA driver."""

    version: str
    cuda_version: tuple[int, int]  # newest CUDA it runs
    num_gpus: int  # in the machine, visible to this process or not


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """Clocks at one moment."""

    sm_clock_mhz: int | None
    mem_clock_mhz: int | None


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """What else a GPU is busy with and what holds its clocks back, at one moment."""

    index: int  # in NVML's order
    pids: tuple[int, ...]  # of processes with a CUDA context there; a container may see other numbers than its own
    slowdowns: tuple[str, ...]  # why the clocks are lower than they should be; () for a healthy GPU, also one at its power limit
    is_power_capped: bool  # the clocks are what the power limit allows, which is usual under full load
    power_limit_w: float | None
    default_power_limit_w: float | None
    uncorrected_ecc_errors: int | None  # since the driver was loaded


def read_driver() -> Driver | None:
    """The driver, or None where there is none."""

    def read(nvml: Any) -> Driver:
        cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())  # 13000 for 13.0
        return Driver(
            version=_text(nvml.nvmlSystemGetDriverVersion()),
            cuda_version=(cuda // 1000, cuda % 1000 // 10),
            num_gpus=int(nvml.nvmlDeviceGetCount()),
        )

    driver: Driver | None = _ask(read)
    return driver


def read_gpu_names() -> list[str]:
    """Names of the visible GPUs in CUDA's order; a MIG slice is named with its profile."""
    names = _ask(lambda nvml: [_text(nvml.nvmlDeviceGetName(handle)) for handle in _visible_handles(nvml)])
    return names or []


def read_compute_capabilities() -> list[tuple[int, int]]:
    """(major, minor) of each visible GPU."""

    def read(nvml: Any) -> list[tuple[int, int]]:
        pairs = [nvml.nvmlDeviceGetCudaComputeCapability(_whole_gpu(nvml, handle)) for handle in _visible_handles(nvml)]
        return [(int(major), int(minor)) for major, minor in pairs]

    return _ask(read) or []


def read_memory_bytes() -> list[int]:
    """Memory of each visible GPU, in torch's order; [] without NVML."""
    return _ask(lambda nvml: [int(nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in _visible_handles(nvml)]) or []


def read_clocks(uuid: str) -> Clocks:
    """Current clocks of the GPU or MIG slice with this UUID, as torch writes it: without "GPU-" or "MIG-" before it."""

    def read(nvml: Any) -> Clocks | None:
        handle = _find_by_torch_uuid(nvml, uuid)
        if handle is None:
            return None
        gpu = _whole_gpu(nvml, handle)
        return Clocks(
            sm_clock_mhz=int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            mem_clock_mhz=int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
        )

    return _ask(read) or Clocks(sm_clock_mhz=None, mem_clock_mhz=None)


def read_state(uuid: str) -> DeviceState | None:
    """The state of the GPU with this UUID, as torch writes it; None where NVML does not answer."""

    def read(nvml: Any) -> DeviceState | None:
        handle = _find_by_torch_uuid(nvml, uuid)
        return None if handle is None else _read_state(nvml, handle)

    state: DeviceState | None = _ask(read)
    return state


def read_states() -> list[DeviceState]:
    """Of the visible GPUs, in CUDA's order."""
    return _ask(lambda nvml: [_read_state(nvml, handle) for handle in _visible_handles(nvml)]) or []


@contextmanager
def opened_gpu(uuid: str) -> Iterator[tuple[Any, Any] | None]:
    """(the pynvml module, NVML's handle) of the GPU or MIG slice with this UUID, as torch writes it, for as long as the block lasts."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or NVMLError, which has no name without the module
        yield None
        return
    try:
        try:
            handle = _find_by_torch_uuid(pynvml, uuid)
        except pynvml.NVMLError:
            handle = None
        yield None if handle is None else (pynvml, handle)
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def opened_gpus() -> Iterator[tuple[Any, list[Any]]]:
    """(the pynvml module, NVML's handles of the whole visible GPUs) for as long as the block lasts; (None, []) without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or NVMLError, which has no name without the module
        yield None, []
        return
    try:
        try:
            handles = [_whole_gpu(pynvml, handle) for handle in _visible_handles(pynvml)]
        except pynvml.NVMLError:
            handles = []
        yield pynvml, handles
    finally:
        pynvml.nvmlShutdown()


def _read_state(nvml: Any, handle: Any) -> DeviceState:
    gpu = _whole_gpu(nvml, handle)
    reasons = int(_maybe(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)) or 0)
    limit_mw, default_mw = (
        _maybe(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)),
        _maybe(nvml, lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu)),
    )
    return DeviceState(
        index=int(nvml.nvmlDeviceGetIndex(gpu)),
        pids=tuple(sorted({int(process.pid) for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)})),
        slowdowns=tuple(text for bit, text in SLOWDOWNS.items() if reasons & bit),
        is_power_capped=bool(reasons & POWER_CAP),
        power_limit_w=None if limit_mw is None else limit_mw / 1e3,
        default_power_limit_w=None if default_mw is None else default_mw / 1e3,
        uncorrected_ecc_errors=_maybe(
            nvml, lambda: nvml.nvmlDeviceGetTotalEccErrors(gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        ),
    )


def _maybe(nvml: Any, ask: Callable[[], Any]) -> Any:
    """The answer, or None from a GPU that does not support the question."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def _find_by_torch_uuid(nvml: Any, uuid: str) -> Any | None:
    return _find_handle(nvml, f"GPU-{uuid}", _all_gpus(nvml)) or _find_handle(nvml, f"MIG-{uuid}", [])


def _ask(read: Callable[[Any], Any]) -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return read(pynvml)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _all_gpus(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def _visible_handles(nvml: Any) -> list[Any]:
    """NVML handles in the order of CUDA_VISIBLE_DEVICES, which names GPUs by index, by (a prefix of) UUID, or MIG slices by UUID.

    As CUDA does, entries from the first one that names nothing are dropped. Indices are taken in PCI order, as
    CUDA_DEVICE_ORDER=PCI_BUS_ID means them; only a machine with unlike GPUs can differ.
    """
    gpus = _all_gpus(nvml)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    handles = []
    for entry in (part.strip() for part in visible.split(",")):
        handle = _find_handle(nvml, entry, gpus)
        if handle is None:
            break
        handles.append(handle)
    return handles


def _find_handle(nvml: Any, entry: str, gpus: list[Any]) -> Any | None:
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    if entry.startswith("MIG-"):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(entry)
        except nvml.NVMLError:
            return None
    if not entry.startswith("GPU-"):
        return None
    matches = [gpu for gpu in gpus if _text(nvml.nvmlDeviceGetUUID(gpu)).startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _whole_gpu(nvml: Any, handle: Any) -> Any:
    """The GPU that a MIG slice is cut from; any other handle unchanged."""
    if nvml.nvmlDeviceIsMigDeviceHandle(handle):
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return handle


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
