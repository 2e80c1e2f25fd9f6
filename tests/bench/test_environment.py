"""The record of the machine, here and on machines made up of a false NVML."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpualloc
from gpualloc.bench import environment, nvml
from gpualloc.bench.isolation import RankWatch
from gpualloc.errors import GpuallocError, UsageError

_UUIDS = ("GPU-aaaa1111", "GPU-bbbb2222")
_SLICE = "MIG-cccc3333"


class NVMLError(Exception):
    pass


def _find(uuid: str) -> str:
    if uuid not in (*_UUIDS, _SLICE):
        raise NVMLError("not found")
    return uuid


def _no_ecc(handle: str, kind: int, counter: int) -> int:
    raise NVMLError("not supported")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with a driver of CUDA 12.4; of the second one, one MIG slice."""
    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: _UUIDS[index],
        nvmlDeviceGetHandleByUUID=_find,
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetName=lambda handle: {_UUIDS[0]: "NVIDIA A", _UUIDS[1]: b"NVIDIA B", _SLICE: "NVIDIA B MIG 1g.5gb"}[handle],
        nvmlDeviceIsMigDeviceHandle=lambda handle: handle == _SLICE,
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle=lambda handle: _UUIDS[1],
        nvmlDeviceGetCudaComputeCapability=lambda handle: {_UUIDS[0]: (7, 5), _UUIDS[1]: (9, 0)}[handle],
        nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1980, 2: 2619}[kind],
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        nvmlDeviceGetIndex=lambda handle: _UUIDS.index(handle),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=9), SimpleNamespace(pid=7), SimpleNamespace(pid=9)],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: {_UUIDS[0]: 0x4, _UUIDS[1]: 0x1 | 0x40 | 0x80}[handle],
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 350_000,
        nvmlDeviceGetPowerManagementDefaultLimit=lambda handle: 700_000,
        nvmlDeviceGetTotalEccErrors=_no_ecc,
        nvmlSystemGetDriverVersion=lambda: "550.54",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12040,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA A", "NVIDIA B"]),
        ("1,0", ["NVIDIA B", "NVIDIA A"]),
        ("GPU-bbbb", ["NVIDIA B"]),
        ("GPU-", []),
        (_SLICE, ["NVIDIA B MIG 1g.5gb"]),
        ("MIG-gone", []),
        ("0,7,1", ["NVIDIA A"]),
        ("", []),
        ("-1", []),
        ("0, 1", ["NVIDIA A", "NVIDIA B"]),
    ],
)
def test_visible_gpus_are_named(two_gpus: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.read_gpu_names() == names


def test_the_lowest_compute_capability_counts(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.compute_capability() == (7, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", _SLICE)
    assert environment.compute_capability() == (9, 0)


def test_clocks_are_found_by_torchs_uuid(two_gpus: None) -> None:
    assert nvml.read_clocks("aaaa1111") == nvml.Clocks(sm_clock_mhz=1980, mem_clock_mhz=2619)
    assert nvml.read_clocks("cccc3333").sm_clock_mhz == 1980
    assert nvml.read_clocks("dddd4444") == nvml.Clocks(sm_clock_mhz=None, mem_clock_mhz=None)


def test_the_state_of_a_gpu_tells_slowdowns_from_a_power_cap(two_gpus: None) -> None:
    capped, slow = nvml.read_states()
    assert capped == nvml.DeviceState(
        index=0,
        pids=(7, 9),
        slowdowns=(),
        is_power_capped=True,
        power_limit_w=350.0,
        default_power_limit_w=700.0,
        uncorrected_ecc_errors=None,
    )
    assert (slow.slowdowns, slow.is_power_capped) == (("hardware thermal slowdown", "power brake"), False)
    assert nvml.read_state("bbbb2222") == slow
    assert nvml.read_state("dddd4444") is None


def test_notes_tell_of_a_low_power_limit(two_gpus: None) -> None:
    watch = RankWatch(gpu_uuid="aaaa1111", ranks_per_gpu=1, num_ranks=1)
    watch.start()
    assert watch.stop() == ["1 other process used GPU 0"]  # of two numbers that are not ours one may be this process
    assert watch.notes() == [
        "the clocks were those that the power limit of 350 W allows",
        "the power limit is 350 W, below the default of 700 W",
    ]


def test_an_old_driver_is_refused_with_both_versions(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(GpuallocError, match=r"driver 550.54 runs CUDA up to 12.4, torch .* needs CUDA 13.0") as caught:
        environment.choose_device()
    assert caught.value.exit_code == 1
    assert environment.choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    environment._refuse_old_driver()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "count_gpus", lambda: 0)
    monkeypatch.setattr(nvml, "read_driver", lambda: None)
    with pytest.raises(UsageError, match=r"no NVIDIA GPU or no driver .* use --device cpu"):
        environment.choose_device("cuda")
    assert environment.choose_device() == "cpu"


def test_this_machine() -> None:
    here = environment.detect_environment("cpu")
    assert here.device_name == here.cpu_name
    assert here.num_cpus == len(os.sched_getaffinity(0))
    assert here.torch_version == torch.__version__
    assert here.native in ("cuda", "cpu") or here.native.startswith("unavailable: ")


def test_no_git_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment._read_git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert environment._read_git_revision() is None


def test_the_version_is_that_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"gpualloc": "1.2.3"}[name])
    assert gpualloc.__version__ == "1.2.3"


def test_a_tree_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", refuse)
    assert gpualloc.__version__ == "not installed"
