"""Peaks by name: known ones, and no guess for the others."""

from __future__ import annotations

import re

import pytest

from gpualloc.profiling.peaks import PEAKS, TFLOPS, find_memory_gb_s, find_peaks, utilisation_of_peak


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.05),
    ],
)
def test_names_as_cuda_gives_them(name: str, bf16: float) -> None:
    peaks = find_peaks(name)
    assert peaks is not None
    assert peaks.tflops["bf16"] == bf16


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H300", "NVIDIA L4000", "AMD Instinct MI300X", ""])
def test_no_guess_for_others(name: str) -> None:
    assert find_peaks(name) is None


@pytest.mark.parametrize(
    ("name", "memory_gb_s"),
    [
        ("NVIDIA H200", 4800),
        ("NVIDIA H200 NVL nvlink4 ib_ndr 8 a node", 4800),
        ("NVIDIA H100 80GB HBM3 nvlink4", 3350),
        ("Tesla T4", 320),
        ("NVIDIA L40S", 864),
        ("NVIDIA L4", 300),
        ("NVIDIA L4000", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("aws", None),
    ],
)
def test_memory_of_the_gpu_that_a_clusters_name_begins_with(name: str, memory_gb_s: float | None) -> None:
    assert find_memory_gb_s(name) == memory_gb_s


def test_every_entry_has_a_dated_source_and_dense_figures() -> None:
    for peaks in PEAKS:
        assert re.search(r"20\d\d-\d\d$", peaks.source), peaks
        if {"tf32", "bf16"} <= set(peaks.tflops):  # tensor cores do half as much in TF32, in all of NVIDIA's sheets
            assert peaks.tflops["tf32"] == pytest.approx(peaks.tflops["bf16"] / 2, rel=0.02)
        assert peaks.tflops.get("bf16", peaks.tflops["fp16"]) == peaks.tflops["fp16"]


def test_mfu_is_the_time_at_peak_over_the_steps() -> None:
    peaks = find_peaks("NVIDIA A100-SXM4-80GB")
    flops = {"bf16": 312 * TFLOPS * 0.3, "fp32": 19.5 * TFLOPS * 0.2}  # 0.3 s and 0.2 s at peak
    assert utilisation_of_peak(flops, step_time_s=1.0, peaks=peaks) == pytest.approx(0.5)
    assert utilisation_of_peak({"bf16": 1e12, "fp8": 1e9}, step_time_s=1.0, peaks=peaks) == pytest.approx(1 / 312)  # 0.1 % does not count
    assert utilisation_of_peak({"bf16": 1e12, "fp8": 1e12}, step_time_s=1.0, peaks=peaks) is None
    assert utilisation_of_peak({}, step_time_s=1.0, peaks=peaks) is None
    assert utilisation_of_peak(flops, step_time_s=1.0, peaks=None) is None
