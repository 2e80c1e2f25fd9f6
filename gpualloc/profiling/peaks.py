"""Dense peak rates of GPUs by name and number format, and of their memory. Hardware that is not listed has none: nothing is guessed.

NVIDIA's data sheets give the rates of tensor cores "with sparsity"; those are halved here. fp64 is the rate of the tensor cores where they
have the format, fp32 that of the CUDA cores. Rates are at the boost clock, in operations per second (a fused multiply-add is two).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TFLOPS = 1e12
_UNCOUNTED_SHARE = 0.01  # of a step's operations: a format without a known peak below this does not make the MFU unknown


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """One kind of GPU."""

    names: str  # a regular expression for the whole name that CUDA gives
    tflops: Mapping[str, float]  # number format -> 10^12 dense operations per second
    source: str  # with its date
    memory_gb_s: float | None = None


_HOPPER_SXM = {"fp64": 67.0, "fp32": 67.0, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4, "fp8": 1978.9}
_HOPPER_NVL = {"fp64": 60.0, "fp32": 60.0, "tf32": 417.5, "fp16": 835.5, "bf16": 835.5, "fp8": 1670.5}

PEAKS = (
    Peaks(
        names=r"NVIDIA H100 (80GB HBM3|SXM\S*)",
        tflops=_HOPPER_SXM,
        memory_gb_s=3350,
        source="NVIDIA H100 architecture whitepaper V1.04, 2023-06",
    ),
    Peaks(
        names=r"NVIDIA H100 PCIe",
        tflops={"fp64": 51.2, "fp32": 51.2, "tf32": 378.0, "fp16": 756.0, "bf16": 756.0, "fp8": 1513.0},
        memory_gb_s=2000,
        source="NVIDIA H100 architecture whitepaper V1.04, 2023-06",
    ),
    Peaks(names=r"NVIDIA H100 NVL", tflops=_HOPPER_NVL, memory_gb_s=3900, source="NVIDIA H100 data sheet, 2024-09"),
    Peaks(names=r"NVIDIA H200", tflops=_HOPPER_SXM, memory_gb_s=4800, source="NVIDIA H200 data sheet, 2024-11"),
    Peaks(names=r"NVIDIA H200 NVL", tflops=_HOPPER_NVL, memory_gb_s=4800, source="NVIDIA H200 data sheet, 2024-11"),
    Peaks(names=r"NVIDIA GH200 (120|144|480)GB.*", tflops=_HOPPER_SXM, source="NVIDIA GH200 data sheet, 2023-11"),
    Peaks(
        names=r"NVIDIA B200",
        tflops={"fp64": 37.0, "fp32": 75.0, "tf32": 1125.0, "fp16": 2250.0, "bf16": 2250.0, "fp8": 4500.0},
        source="NVIDIA HGX B200 specifications, an eighth of the board's, 2024-11",
    ),
    *(
        Peaks(
            names=names,
            tflops={"fp64": 19.5, "fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0},
            memory_gb_s=memory_gb_s,
            source="NVIDIA A100 data sheet, 2022-06",
        )
        for names, memory_gb_s in (
            (r"(NVIDIA )?A100-(SXM4|PCI[Ee])-40GB", 1555),
            (r"(NVIDIA )?A100-SXM4-80GB", 2039),
            (r"(NVIDIA )?A100-PCI[Ee]-80GB|NVIDIA A100 80GB PCIe", 1935),
        )
    ),
    Peaks(
        names=r"Tesla V100-SXM2.*",
        tflops={"fp64": 7.8, "fp32": 15.7, "fp16": 125.0},
        memory_gb_s=900,
        source="NVIDIA V100 data sheet, 2020-01",
    ),
    Peaks(
        names=r"Tesla V100-PCIE.*",
        tflops={"fp64": 7.0, "fp32": 14.0, "fp16": 112.0},
        memory_gb_s=900,
        source="NVIDIA V100 data sheet, 2020-01",
    ),
    Peaks(names=r"(NVIDIA |Tesla )T4", tflops={"fp32": 8.1, "fp16": 65.0}, memory_gb_s=320, source="NVIDIA T4 data sheet, 2019-02"),
    Peaks(
        names=r"(NVIDIA )?GeForce RTX 2080 Ti",
        tflops={"fp32": 13.4, "fp16": 53.8},  # sums in FP32, as torch has them
        memory_gb_s=616,
        source="NVIDIA Turing architecture whitepaper, reference clock, 2018-09",
    ),
    Peaks(
        names=r"NVIDIA A10",
        tflops={"fp32": 31.2, "tf32": 62.5, "fp16": 125.0, "bf16": 125.0},
        memory_gb_s=600,
        source="NVIDIA A10 data sheet, 2021-03",
    ),
    Peaks(
        names=r"NVIDIA L4",
        tflops={"fp32": 30.3, "tf32": 60.0, "fp16": 121.0, "bf16": 121.0, "fp8": 242.5},
        memory_gb_s=300,
        source="NVIDIA L4 data sheet, 2023-03",
    ),
    Peaks(
        names=r"NVIDIA L40S",
        tflops={"fp32": 91.6, "tf32": 183.0, "fp16": 362.05, "bf16": 362.05, "fp8": 733.0},
        memory_gb_s=864,
        source="NVIDIA L40S data sheet, 2023-10",
    ),
)


def find_peaks(device_name: str) -> Peaks | None:
    """Of the GPU with this name, as CUDA gives it; None where it is not listed, as for a MIG slice."""
    return next((peaks for peaks in PEAKS if re.fullmatch(peaks.names, device_name)), None)


def find_memory_gb_s(name: str) -> float | None:
    """Peak rate of the memory of the GPU that a name, of a cluster say, begins with; None for one not listed and for a slice."""
    if " MIG " in name:
        return None
    found = [(match.end(), peaks.memory_gb_s) for peaks in PEAKS if (match := re.match(rf"({peaks.names})(?!\S)", name))]
    return max(found, default=(0, None), key=lambda each: each[0])[1]


def utilisation_of_peak(flops: Mapping[str, float], *, step_time_s: float, peaks: Peaks | None) -> float | None:
    """Model FLOP utilisation (MFU; Chowdhery et al., PaLM, 2022, appendix B): the time the operations take at peak, over the step's.

    Args:
        flops: number format -> operations of a step.

    Returns:
        None without operations, on unknown hardware, or where a format that counts has no known peak.
    """
    total = sum(flops.values())
    if peaks is None or total <= 0:
        return None
    time_at_peak_s = 0.0
    for name, count in flops.items():
        if name in peaks.tflops:
            time_at_peak_s += count / (peaks.tflops[name] * TFLOPS)
        elif count > _UNCOUNTED_SHARE * total:
            return None
    return time_at_peak_s / step_time_s
