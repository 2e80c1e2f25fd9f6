"""Each check, on this machine and on made-up ones."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from gpualloc import _native
from gpualloc.bench import nvml
from gpualloc.bench.nvml import Driver
from gpualloc.doctor import Finding, machine, run_checks, software, storage
from gpualloc.store import ResultsStore


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_every_check_gives_a_finding_here() -> None:
    findings = run_checks()
    assert len(findings) >= 15  # those of GPUs say nothing where there is none
    assert len({finding.name for finding in findings}) == len(findings)
    assert all("the check broke" not in finding.seen for finding in findings)
    assert all((finding.advice is None) == (finding.status == "OK") for finding in findings)


def test_a_check_that_breaks_is_a_warning_and_the_others_run() -> None:
    def check_moon_phase() -> Finding:
        raise RuntimeError("new moon")

    broken, after = run_checks([check_moon_phase, software.check_versions])
    assert (broken.name, broken.status, broken.seen) == ("moon phase", "WARN", "the check broke: RuntimeError: new moon")
    assert after.status == "OK"


def test_torch_missing_or_broken_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` an ImportError
    finding = software.check_torch()
    assert finding.status == "FAIL"
    assert f"torch {torch.__version__} does not import" in finding.seen
    monkeypatch.setattr(software, "_version", lambda name: None)
    assert software.check_torch() == Finding(name="torch", status="FAIL", seen="not installed", advice="pip install torch")


def build(**changes: Any) -> _native.NativeBuild:
    good: dict[str, Any] = {
        "available": True,
        "reason": None,
        "built_for_torch": "2.11.0+cu130",
        "built_for_cuda": "13.0",
        "cuda_archs": ("80", "90"),
        "cuda_skipped": None,
        "cpu_isa": "avx2",
    }
    return _native.NativeBuild(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({}, "OK", "built for torch 2.11.0+cu130, CUDA 13.0 (sm_80, sm_90), avx2"),
        ({"built_for_cuda": None, "cuda_archs": ()}, "OK", "built for torch 2.11.0+cu130, CPU only, avx2"),
        ({"built_for_cuda": None, "cuda_skipped": "no nvcc was found"}, "WARN", "no nvcc was found"),
        ({"available": False, "reason": "it was built for torch 2.11"}, "WARN", "it was built for torch 2.11"),
    ],
)
def test_extension(changes: dict[str, Any], status: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "describe", lambda: build(**changes))
    finding = software.check_extension()
    assert finding.status == status
    assert text in f"{finding.seen} {finding.advice}"


def test_no_driver_is_a_warning_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "read_driver", lambda: None)
    monkeypatch.setattr(machine, "_why_no_driver", lambda: "NVML says: Driver Not Loaded")
    finding = machine.check_gpus()
    assert (finding.status, finding.seen) == ("WARN", "none: NVML says: Driver Not Loaded")
    assert "the CPU path runs" in str(finding.advice)


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two H200, whose driver runs CUDA 12.4."""
    driver = Driver(version="550.54.15", cuda_version=(12, 4), num_gpus=2)
    monkeypatch.setattr(nvml, "read_driver", lambda: driver)
    monkeypatch.setattr(nvml, "read_gpu_names", lambda: ["NVIDIA H200", "NVIDIA H200"])


@pytest.mark.usefixtures("with_gpus")
@pytest.mark.parametrize(("cuda", "status"), [("13.0", "FAIL"), ("12.8", "OK"), ("12.1", "OK"), ("11.8", "OK")])
def test_a_driver_older_than_torchs_cuda_fails_with_both_versions(cuda: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    finding = machine.check_gpus()
    assert finding.status == status
    assert "NVIDIA H200, NVIDIA H200; driver 550.54.15 runs CUDA up to 12.4" in finding.seen
    assert (f"needs CUDA {cuda}" in finding.seen) == (status == "FAIL")


@pytest.mark.usefixtures("with_gpus")
def test_gpus_that_torch_cannot_use_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = machine.check_gpus()
    assert finding.status == "WARN"
    assert "CPU build" in str(finding.advice)


@pytest.mark.parametrize(
    ("cuda", "nccl", "gloo", "status"),
    [(None, False, True, "OK"), ("13.0", True, True, "OK"), ("13.0", False, True, "FAIL"), (None, False, False, "FAIL")],
)
def test_collectives(cuda: str | None, nccl: bool, gloo: bool, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: gloo)
    assert software.check_collectives().status == status


@pytest.mark.parametrize(
    ("source", "status"),
    [("", "OK"), ("raise RuntimeError('operator torchvision::nms does not exist')", "WARN"), ("import os; os._exit(7)", "WARN")],
)
def test_torchvision_that_does_not_import_is_a_warning(source: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    finding = software.check_torchvision()
    assert finding.status == status
    if status == "WARN":
        assert finding.seen.endswith(("operator torchvision::nms does not exist", "exit code 7"))
        assert "pip uninstall torchvision" in str(finding.advice)


def test_a_torchvision_that_hangs_does_not_break_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", hang)
    (finding,) = run_checks([software.check_torchvision])
    assert finding.status == "WARN"
    assert "timed out" in finding.seen


@pytest.mark.parametrize(
    ("cores", "limit", "status", "seen"),
    [
        (8, "max 100000", "OK", "8 of 64 usable"),
        (8, "250000 100000", "OK", "8 of 64 usable, limited to 2.5 by the container"),
        (8, "100000 100000", "WARN", "8 of 64 usable, limited to 1 by the container"),
        (1, "garbage", "WARN", "1 of 64 usable"),
    ],
)
def test_cpu_cores(cores: int, limit: str, status: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(machine, "_CGROUP_CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    finding = machine.check_cpu_cores()
    assert (finding.status, finding.seen) == (status, seen)


@pytest.mark.parametrize(("free_mib", "status"), [(64, "WARN"), (8192, "OK")])
def test_shared_memory(free_mib: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total=2**34, used=0, free=free_mib * 2**20))
    assert machine.check_shared_memory().status == status


def test_results_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "down" / "results.sqlite"
    monkeypatch.setenv("GPUALLOC_STORE", str(path))
    assert storage.check_results_store().status == "OK"
    assert list(tmp_path.iterdir()) == []  # nothing was made
    with ResultsStore(path):
        pass
    assert storage.check_results_store().seen == f"{path}, runs: 0"
    path.write_text("not a database, not even one page of it")
    assert storage.check_results_store().status == "FAIL"
    monkeypatch.setenv("GPUALLOC_STORE", str(path / "below a file"))
    assert "is not a writable directory" in storage.check_results_store().seen
