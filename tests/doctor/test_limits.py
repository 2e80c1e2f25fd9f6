"""Limits, settings and leftovers, in made-up surroundings."""

import os
import resource
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpualloc import doctor
from gpualloc.doctor import communication, limits, storage
from gpualloc.doctor.finding import Finding

GIB = 2**30


@pytest.mark.parametrize(
    ("files", "status", "seen"),
    [
        ({}, "OK", "64.0 GiB"),
        ({"memory.max": "max"}, "OK", "64.0 GiB"),
        ({"memory.max": str(8 * GIB), "memory.current": str(GIB)}, "OK", "8.0 GiB of 64.0 GiB, limited by the container"),
        ({"memory.max": str(2 * GIB)}, "WARN", "less than 4 GiB"),
        ({"memory.max": str(8 * GIB), "memory.current": str(int(7.5 * GIB))}, "WARN", "94% of it is in use"),
        (
            {"memory.max": str(8 * GIB), "memory.current": str(int(7.5 * GIB)), "memory.stat": f"inactive_file {4 * GIB}"},
            "OK",
            "8.0 GiB of 64.0 GiB",
        ),
        ({"memory/memory.limit_in_bytes": str(2 * GIB)}, "WARN", "less than 4 GiB"),
        ({"cpu.stat": "nr_periods 1000\nnr_throttled 200"}, "WARN", "held it back in 20% of its periods"),
    ],
)
def test_what_a_container_allows(files: dict[str, str], status: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB))
    finding = limits.check_container_limits()
    assert (finding.status, seen in finding.seen) == (status, True), finding


@pytest.mark.parametrize(
    ("limit", "has_infiniband", "status", "seen"),
    [
        ({}, False, "OK", "65,536 open files, any number of processes"),
        ({resource.RLIMIT_NOFILE: (1024, 1024)}, False, "WARN", "only 1,024 open files"),
        ({resource.RLIMIT_NPROC: (512, 512)}, False, "WARN", "only 512 processes"),
        ({resource.RLIMIT_MEMLOCK: (2**26, 2**26)}, False, "OK", "65,536 open files"),
        ({resource.RLIMIT_MEMLOCK: (2**26, 2**26)}, True, "WARN", "64 MiB of locked memory"),
    ],
)
def test_ulimits(limit: Any, has_infiniband: bool, status: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    values = {resource.RLIMIT_NOFILE: (65536, 65536), resource.RLIMIT_NPROC: unlimited, resource.RLIMIT_MEMLOCK: unlimited, **limit}
    monkeypatch.setattr(limits.resource, "getrlimit", values.__getitem__)
    if has_infiniband:
        (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(limits, "_INFINIBAND", tmp_path)
    finding = limits.check_limits()
    assert (finding.status, seen in finding.seen) == (status, True), finding


@pytest.mark.parametrize(
    ("driver", "governor", "status"),
    [("acpi-cpufreq", "performance", "OK"), ("acpi-cpufreq", "powersave", "WARN"), ("intel_pstate", "powersave", "OK"), (None, None, None)],
)
def test_clocks_of_cores(
    driver: str | None, governor: str | None, status: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if driver is not None:
        folder = tmp_path / "cpu0" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_driver").write_text(driver)
        (folder / "scaling_governor").write_text(str(governor))
    monkeypatch.setattr(limits, "_GOVERNORS", tmp_path)
    finding = limits.check_cpu_clocks()
    assert (finding and finding.status) == status


@pytest.mark.parametrize(
    ("commands", "environment", "answer", "status", "seen"),
    [
        ((), {}, "", "OK", "no Slurm, Ray "),
        (("sbatch",), {}, "gpu*\nlong\n", "OK", "Slurm with partitions gpu*, long"),
        (("sbatch",), {}, None, "WARN", "sinfo tells of no partition"),
        ((), {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}, "", "OK", "inside Slurm job 7 with 4 GPUs"),
        ((), {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, "", "WARN", "no MASTER_ADDR"),
        ((), {"RAY_ADDRESS": "auto"}, "", "WARN", "RAY_ADDRESS is set but Ray is not installed"),
    ],
)
def test_schedulers(
    commands: tuple[str, ...], environment: dict[str, str], answer: str | None, status: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "RAY_ADDRESS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1 if answer is None else 0, stdout=answer or "")

    monkeypatch.setattr(limits.shutil, "which", lambda name: f"/usr/bin/{name}" if name in commands else None)
    monkeypatch.setattr(limits, "_has_module", lambda name: False)
    monkeypatch.setattr(subprocess, "run", run)
    finding = limits.check_schedulers()
    assert (finding.status, seen in finding.seen) == (status, True), finding


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of NCCL or torchrun, and no file of NCCL."""
    for name in list(os.environ):
        if name.startswith(("NCCL_", "TORCH_", "GLOO_", "CUDA_", "SLURM_", "MASTER_", "RANK", "WORLD_SIZE")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(communication, "_NCCL_FILES", (tmp_path / "nccl.conf",))
    monkeypatch.setattr(communication, "has_infiniband", lambda: True)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("name", "value", "is_trap"),
    [
        ("NCCL_P2P_DISABLE", "1", True),
        ("NCCL_P2P_DISABLE", "0", False),
        ("NCCL_IB_DISABLE", "1", True),
        ("NCCL_ALGO", "Ring", True),
        ("NCCL_DEBUG", "INFO", True),
        ("NCCL_DEBUG", "WARN", False),
        ("CUDA_LAUNCH_BLOCKING", "1", True),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", True),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "1", True),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "32", False),
        ("NCCL_CUMEM_ENABLE", "1", False),
    ],
)
def test_variables_that_were_left_over(name: str, value: str, is_trap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert communication.check_nccl_environment().status == "OK"
    monkeypatch.setenv(name, value)
    finding = communication.check_nccl_environment()
    assert finding.status == ("WARN" if is_trap else "OK")
    assert finding.seen.startswith(f"{name}={value}: ") == is_trap


@pytest.mark.usefixtures("bare")
def test_files_of_nccl_count_unless_the_environment_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nccl.conf").write_text("# a comment = 1\nNCCL_P2P_DISABLE = 1\n")
    assert communication.check_nccl_environment().status == "WARN"
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    assert communication.check_nccl_environment().status == "OK"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("environment", "status", "seen"),
    [
        ({}, "OK", "InfiniBand or RoCE"),
        ({"GLOO_SOCKET_IFNAME": "lo"}, "OK", ""),
        ({"GLOO_SOCKET_IFNAME": "nosuch0"}, "FAIL", "GLOO_SOCKET_IFNAME=nosuch0 names no interface; there are "),
        ({"NCCL_SOCKET_IFNAME": "^docker0"}, "OK", ""),
        ({"NCCL_SOCKET_IFNAME": "lo", "MASTER_ADDR": "10.1.2.3"}, "WARN", "no other node is reached over lo"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WARN", "RANK, WORLD_SIZE set and MASTER_ADDR, MASTER_PORT not"),
    ],
)
def test_interfaces(environment: dict[str, str], status: str, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    finding = communication.check_network_interfaces()
    assert (finding.status, seen in finding.seen) == (status, True), finding


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, "OK"),
        ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, "WARN"),
        ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}, "OK"),
        ({"TORCH_NCCL_ENABLE_MONITORING": "0"}, "WARN"),
        ({"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "10"}, "WARN"),
        ({"NCCL_IB_TIMEOUT": "14"}, "WARN"),
    ],
)
def test_time_outs(environment: dict[str, str], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    finding = communication.check_timeouts()
    assert (finding.status, "gloo 30 min" in finding.seen) == (status, True)


def test_only_old_folders_that_nobody_uses_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("gpualloc-bench-old", "gpualloc-bench-open", "gpualloc-bench-new", "another-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "order.json").write_text("{}")
    (tmp_path / "gpualloc-link").symlink_to(tmp_path / "another-old")
    for name in ("gpualloc-bench-old", "gpualloc-bench-open", "another-old"):
        os.utime(tmp_path / name, (1e9, 1e9))
    with (tmp_path / "gpualloc-bench-open" / "order.json").open():
        findings = doctor.run_checks([storage.check_leftovers])
        assert [(finding.status, finding.fix) for finding in findings] == [("WARN", "delete them")]
        assert findings[0].seen.startswith("1 folder of killed runs")
        assert list(doctor.fix(findings)) == [(findings[0], "1 of 1 folders deleted")]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "another-old",
            "gpualloc-bench-new",
            "gpualloc-bench-open",
            "gpualloc-link",
        ]
        assert storage.check_leftovers().status == "OK"


def test_nothing_is_fixed_where_nothing_is_found() -> None:
    assert list(doctor.fix([Finding(name="leftovers", status="OK", seen="none")])) == []
