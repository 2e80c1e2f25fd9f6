"""How the visible GPUs are: memory errors, faults in the kernel log, clocks, settings. None where there is no GPU to ask."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from typing import Any

from gpualloc.bench.nvml import POWER_CAP, SLOWDOWNS, opened_gpus
from gpualloc.doctor.finding import Finding, judged

# NVIDIA, "XID Errors" (docs.nvidia.com/deploy/xid-errors, read 2026-11): those that a program's own mistakes cause, not the hardware.
_PROGRAMS_XIDS = {13, 31, 43, 45}
_XIDS = {
    48: "double-bit memory error",
    64: "row remapping failed",
    74: "NVLink error",
    79: "fallen off the bus",
    95: "uncontained memory error",
}
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")
_LOG_COMMANDS = (["dmesg"], ["journalctl", "--dmesg", "--boot", "--quiet", "--no-pager"])
_LOG_TIMEOUT_S = 5.0
_HOT_C = 85  # H100 and A100 slow down at 87 to 92 C by their own thresholds; asked first, this is for GPUs that do not tell
_FABRIC_COMPLETED, _FABRIC_NOT_SUPPORTED = 3, 0  # nvml.h (CUDA 13.0), NVML_GPU_FABRIC_STATE_*
_EXCLUSIVE_PROCESS, _PROHIBITED = 3, 2  # nvml.h, nvmlComputeMode_t
_APPLICATION_CLOCKS = 0x2  # nvml.h, nvmlClocksEventReasonApplicationsClocksSetting


def check_gpu_memory() -> Finding | None:
    """ECC errors, rows remapped and pages retired: memory that fails."""
    failures, warnings, seen = [], [], []
    with opened_gpus() as (nvml, gpus):
        if not gpus:
            return None
        for number, gpu in enumerate(gpus):
            ask = asker(nvml, gpu)
            errors = ask("nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
            remapped = ask("nvmlDeviceGetRemappedRows")
            if errors:
                failures.append(f"GPU {number}: {errors} uncorrected memory errors since the driver was loaded")
            if remapped and remapped[3]:
                failures.append(f"GPU {number}: remapping a row of its memory failed")
            elif remapped and remapped[2]:
                warnings.append(f"GPU {number}: a row of its memory waits to be remapped")
            if ask("nvmlDeviceGetRetiredPagesPendingStatus") == 1:
                warnings.append(f"GPU {number}: a page of its memory waits to be retired")
            ecc = ask("nvmlDeviceGetEccMode")
            seen.append("ECC unknown" if ecc is None else "ECC on" if ecc[0] else "ECC off")
    advice = "end what runs there, reset the GPU (nvidia-smi --gpu-reset) and, if errors come back, have it replaced"
    return judged("GPU memory", summed(seen), failures=failures, warnings=warnings, advice=advice)


def check_gpu_faults() -> Finding | None:
    """Xid messages in the kernel's log since the machine started."""
    with opened_gpus() as (_, gpus):
        if not gpus:
            return None
    log = _read_kernel_log()
    if log is None:
        return Finding(name="GPU faults", status="OK", seen="unknown: the kernel log is not readable here; root sees: dmesg | grep Xid")
    counts: dict[tuple[str, int], int] = {}
    for address, number in _XID.findall(log):
        counts[address, int(number)] = counts.get((address, int(number)), 0) + 1
    if not counts:
        return Finding(name="GPU faults", status="OK", seen="no Xid in the kernel log")
    told = [
        f"{count} x Xid {number}{f' ({_XIDS[number]})' if number in _XIDS else ''} on {address}"
        for (address, number), count in sorted(counts.items())
    ]
    is_hardware = any(number not in _PROGRAMS_XIDS for _, number in counts)
    advice = (
        "drain the node, keep the kernel log, and look the number up in NVIDIA's Xid catalogue"
        if is_hardware
        else "these come from programs: look for an illegal access in what ran then (compute-sanitizer)"
    )
    return judged("GPU faults", "", failures=told if is_hardware else [], warnings=[] if is_hardware else told, advice=advice)


def check_gpu_clocks() -> Finding | None:
    """Whether something holds the clocks back now: heat, a power brake, a limit that was set."""
    failures, warnings, seen = [], [], []
    with opened_gpus() as (nvml, gpus):
        if not gpus:
            return None
        for number, gpu in enumerate(gpus):
            ask = asker(nvml, gpu)
            reasons = int(ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0)
            failures += [f"GPU {number}: {text}" for bit, text in SLOWDOWNS.items() if reasons & bit]
            limit_mw, default_mw = ask("nvmlDeviceGetEnforcedPowerLimit"), ask("nvmlDeviceGetPowerManagementDefaultLimit")
            if limit_mw and default_mw and limit_mw < default_mw:
                warnings.append(f"GPU {number}: power limit {limit_mw / 1e3:.0f} W, below the default of {default_mw / 1e3:.0f} W")
            now, highest = (
                ask("nvmlDeviceGetApplicationsClock", nvml.NVML_CLOCK_SM),
                ask("nvmlDeviceGetDefaultApplicationsClock", nvml.NVML_CLOCK_SM),
            )
            if now and highest and now < highest:
                warnings.append(f"GPU {number}: clocks set to {now} MHz, below the default of {highest} MHz")
            elif reasons & _APPLICATION_CLOCKS and not highest:
                warnings.append(f"GPU {number}: its clocks are held by a setting")
            degrees = ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
            if degrees is not None and degrees >= _HOT_C:
                warnings.append(f"GPU {number}: {degrees} C")
            capped = ", at its power limit" if reasons & POWER_CAP else ""
            most = ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
            seen.append(f"up to {most or '?'} MHz, {'?' if limit_mw is None else f'{limit_mw / 1e3:.0f}'} W{capped}")
    advice = "look at cooling and power supply; back to the defaults (as root): nvidia-smi -rgc; nvidia-smi -rac; nvidia-smi -pl WATTS"
    return judged("GPU clocks", summed(seen), failures=failures, warnings=warnings, advice=advice)


def check_gpu_settings() -> Finding | None:
    """Persistence, compute mode, MIG, and whether NVSwitch's fabric is up."""
    failures, warnings, seen, advice = [], [], [], []
    with opened_gpus() as (nvml, gpus):
        if not gpus:
            return None
        for number, gpu in enumerate(gpus):
            ask = asker(nvml, gpu)
            is_persistent, mode, mig = ask("nvmlDeviceGetPersistenceMode"), ask("nvmlDeviceGetComputeMode"), ask("nvmlDeviceGetMigMode")
            if is_persistent == 0:
                warnings.append(f"GPU {number}: persistence is off: the driver unloads between jobs, which then start seconds later")
                advice.append("as root: nvidia-smi -pm 1, or start nvidia-persistenced")
            if mode == _PROHIBITED:
                failures.append(f"GPU {number}: compute mode PROHIBITED")
                advice.append("as root: nvidia-smi -c DEFAULT")
            elif mode == _EXCLUSIVE_PROCESS:
                warnings.append(
                    f"GPU {number}: compute mode EXCLUSIVE_PROCESS: one process at a time, and so no --ranks-per-gpu without MPS"
                )
                advice.append("as root: nvidia-smi -c DEFAULT")
            state = _fabric_state(nvml, gpu)
            if state not in (None, _FABRIC_NOT_SUPPORTED, _FABRIC_COMPLETED):
                failures.append(f"GPU {number}: NVSwitch's fabric is not up (state {state}): CUDA fails with error 802")
                advice.append("start the fabric manager of the driver's own version: systemctl start nvidia-fabricmanager")
            seen.append(("persistent" if is_persistent else "not persistent") + (", MIG on" if mig and mig[0] else ""))
    return judged("GPU settings", summed(seen), failures=failures, warnings=warnings, advice="; ".join(dict.fromkeys(advice)))


def _fabric_state(nvml: Any, gpu: Any) -> int | None:
    try:
        info = nvml.c_nvmlGpuFabricInfo_t()
        nvml.nvmlDeviceGetGpuFabricInfo(gpu, ctypes.byref(info))
        return int(info.state)
    except (nvml.NVMLError, AttributeError):  # an older driver or binding
        return None


def asker(nvml: Any, gpu: Any) -> Callable[..., Any]:
    """Asks NVML of one GPU; None from one that does not support the question."""

    def ask(call: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, call)(gpu, *arguments)
        except (nvml.NVMLError, AttributeError):  # AttributeError: a binding older than the call
            return None

    return ask


def _read_kernel_log() -> str | None:
    for command in _LOG_COMMANDS:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LOG_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout
    return None


def summed(texts: list[str]) -> str:
    """["a", "a", "b"] -> "2 x a, 1 x b"; a single kind by itself."""
    counts = {text: texts.count(text) for text in texts}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} x {text}" for text, count in counts.items())
