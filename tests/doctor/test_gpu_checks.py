"""GPU health, links and copies, on GPUs that are made up."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpualloc.bench import environment
from gpualloc.doctor import gpu_health, measured, topology
from gpualloc.doctor.finding import Finding
from gpualloc.doctor.probe_server import ProbeError
from tests.watching.fake_nvml import FakeNvml

HEALTHY: dict[str, Any] = {
    "nvmlDeviceGetCount": 2,
    "nvmlDeviceIsMigDeviceHandle": False,
    "nvmlDeviceGetTotalEccErrors": 0,
    "nvmlDeviceGetRemappedRows": (0, 0, 0, 0),
    "nvmlDeviceGetRetiredPagesPendingStatus": 0,
    "nvmlDeviceGetEccMode": (1, 1),
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1,  # idle
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetApplicationsClock": 1980,
    "nvmlDeviceGetDefaultApplicationsClock": 1980,
    "nvmlDeviceGetTemperature": 34,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetComputeMode": 0,
    "nvmlDeviceGetMigMode": (0, 0),
    "nvmlDeviceGetP2PStatus": 0,
    "nvmlDeviceGetTopologyCommonAncestor": 50,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetPciInfo": lambda gpu: SimpleNamespace(busId=b"00000000:3B:00.0" if gpu == "gpu0" else b"00000000:D8:00.0"),
}
CHECKS = (
    gpu_health.check_gpu_memory,
    gpu_health.check_gpu_clocks,
    gpu_health.check_gpu_settings,
    topology.check_gpu_links,
    topology.check_pcie,
    topology.check_numa,
)


def of_second(bad: Any, good: Any) -> Callable[..., Any]:
    """An answer that differs on GPU 1."""
    return lambda gpu, *arguments: bad if gpu == "gpu1" else good


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts two healthy GPUs here, with other answers where given."""

    def put(**answers: Any) -> None:
        nvml = FakeNvml(**{**HEALTHY, **answers})
        nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED = nvml.NVML_VOLATILE_ECC = 0  # type: ignore[attr-defined]
        monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


def test_two_healthy_gpus_are_ok(gpus: Callable[..., None]) -> None:
    gpus()
    findings = [check() for check in CHECKS]
    assert [finding.status for finding in findings if finding] == ["OK"] * len(CHECKS)
    assert [finding.seen for finding in findings if finding][:5] == [
        "ECC on",
        "up to 1980 MHz, 700 W",
        "persistent",
        "1 pair: NVLink",
        "PCIe 5 x16",
    ]


def test_without_gpus_there_is_nothing_to_say(gpus: Callable[..., None]) -> None:
    gpus(nvmlDeviceGetCount=0)
    assert [check() for check in (*CHECKS[:5], gpu_health.check_gpu_faults)] == [None] * 6


def test_a_gpu_that_answers_nothing_is_not_blamed(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(**{name: of_second_error for name in HEALTHY if name not in ("nvmlDeviceGetCount", "nvmlDeviceIsMigDeviceHandle")})
    assert {finding.status for check in CHECKS if (finding := check())} == {"OK"}


def of_second_error(*arguments: Any) -> Any:
    raise FakeNvml.NVMLError("Not Supported")


@pytest.mark.parametrize(
    ("check", "answers", "status", "seen"),
    [
        (0, {"nvmlDeviceGetTotalEccErrors": of_second(3, 0)}, "FAIL", "GPU 1: 3 uncorrected memory errors"),
        (0, {"nvmlDeviceGetRemappedRows": of_second((0, 1, 0, 1), (0, 0, 0, 0))}, "FAIL", "GPU 1: remapping a row"),
        (0, {"nvmlDeviceGetRemappedRows": of_second((0, 1, 1, 0), (0, 0, 0, 0))}, "WARN", "GPU 1: a row of its memory waits"),
        (0, {"nvmlDeviceGetRetiredPagesPendingStatus": 1}, "WARN", "waits to be retired"),
        (1, {"nvmlDeviceGetCurrentClocksThrottleReasons": of_second(0x40, 0)}, "FAIL", "GPU 1: hardware thermal slowdown"),
        (1, {"nvmlDeviceGetCurrentClocksThrottleReasons": 0x4}, "OK", "at its power limit"),
        (
            1,
            {"nvmlDeviceGetEnforcedPowerLimit": of_second(400_000, 700_000)},
            "WARN",
            "GPU 1: power limit 400 W, below the default of 700 W",
        ),
        (1, {"nvmlDeviceGetApplicationsClock": 1200}, "WARN", "clocks set to 1200 MHz"),
        (1, {"nvmlDeviceGetTemperature": 88}, "WARN", "88 C"),
        (2, {"nvmlDeviceGetPersistenceMode": 0}, "WARN", "persistence is off"),
        (2, {"nvmlDeviceGetComputeMode": 3}, "WARN", "EXCLUSIVE_PROCESS"),
        (2, {"nvmlDeviceGetComputeMode": 2}, "FAIL", "PROHIBITED"),
        (3, {"nvmlDeviceGetP2PStatus": lambda a, b, kind: 5 if kind == 2 else 0}, "OK", "1 pair: the CPUs (SYS)"),
        (3, {"nvmlDeviceGetP2PStatus": lambda a, b, kind: 5 if kind == 2 else 1}, "WARN", "no peer access between 0-1: the chipset"),
        (4, {"nvmlDeviceGetCurrPcieLinkWidth": of_second(4, 16)}, "WARN", "GPU 1 has 4 of 16 PCIe lanes"),
    ],
)
def test_what_is_wrong_is_named(check: int, answers: dict[str, Any], status: str, seen: str, gpus: Callable[..., None]) -> None:
    gpus(**answers)
    finding = CHECKS[check]()
    assert finding is not None
    assert (finding.status, (finding.advice is None)) == (status, status == "OK")
    assert seen in finding.seen


def test_a_fabric_that_is_not_up_fails(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus()
    monkeypatch.setattr(gpu_health, "_fabric_state", lambda nvml, gpu: 2)
    finding = gpu_health.check_gpu_settings()
    assert finding is not None
    assert finding.status == "FAIL"
    assert "fabric" in str(finding.advice)


@pytest.mark.parametrize(
    ("log", "status", "seen"),
    [
        (None, "OK", "unknown"),
        ("all is well\n", "OK", "no Xid"),
        ("[1] NVRM: Xid (PCI:0000:3b:00): 31, pid=7\n" * 2, "WARN", "2 x Xid 31 on 0000:3b:00"),
        ("[1] NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\n", "FAIL", "1 x Xid 79 (fallen off the bus) on 0000:3b:00"),
    ],
)
def test_xids_of_programs_warn_and_those_of_hardware_fail(
    log: str | None, status: str, seen: str, gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus()

    def run(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1 if log is None else 0, stdout=log or "", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    finding = gpu_health.check_gpu_faults()
    assert finding is not None
    assert (finding.status, finding.seen.startswith(seen)) == (status, True)


def test_a_process_that_may_not_run_beside_its_gpu_is_told(
    gpus: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus()
    for node, cores in enumerate(("0-3", "4-7,12")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cores + "\n")
    for address, node in (("0000:3b:00.0", 0), ("0000:d8:00.0", 1)):
        (tmp_path / address).mkdir()
        (tmp_path / address / "numa_node").write_text(f"{node}\n")
    monkeypatch.setattr(topology, "_NODES", tmp_path)
    monkeypatch.setattr(topology, "_PCI_DEVICES", tmp_path)
    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda pid: {0, 12})
    assert topology.check_numa() == Finding(name="NUMA", status="OK", seen="2 nodes: GPU 0 at node 0, GPU 1 at node 1")
    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda pid: {0, 3})
    finding = topology.check_numa()
    assert finding.status == "WARN"
    assert finding.seen.startswith("GPU 1 is at node 1, on none of whose cores")


class Server:
    """Answers for the processes of a probe."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def run(self, probe: str, **arguments: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("rows", "status", "seen"),
    [
        ([[55.0, 12.0], [54.0, 11.0]], "OK", "pinned 54.0 to 55.0, pageable 11.0 to 12.0 GB/s"),
        ([[55.0, 12.0], [12.0, 9.0]], "WARN", "GPU 1: 12.0 GB/s pinned, where its link carries 63.0"),
    ],
)
def test_copies_are_held_against_the_link(
    rows: Any, status: str, seen: str, gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus()
    monkeypatch.setattr(environment, "count_gpus", lambda: 2)
    finding = measured.check_copies(Server([rows]))  # type: ignore[arg-type]
    assert finding is not None
    assert finding.status == status
    assert seen in finding.seen


def test_nccl_over_the_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = {"busbw_gb_s": 220.0, "is_exact": True}
    for num_gpus, answer, status, seen in (
        (2, [exact, {**exact, "busbw_gb_s": 210.0}], "OK", "2 ranks, exact, busbw 210 GB/s"),
        (2, [exact, {**exact, "is_exact": False}], "FAIL", "2 ranks got another sum"),
        (1, [{"busbw_gb_s": None, "is_exact": True}], "OK", "1 rank: it starts; no link to measure"),
        (2, ProbeError("rank 1: DistBackendError: NCCL error"), "FAIL", "rank 1: DistBackendError"),
    ):
        monkeypatch.setattr(environment, "count_gpus", lambda num_gpus=num_gpus: num_gpus)
        finding = measured.check_nccl(Server(answer))  # type: ignore[arg-type]
        assert finding is not None
        assert (finding.status, finding.seen.startswith(seen)) == (status, True)
