"""GPUs by name: UUIDs, MIG slices, what CUDA_VISIBLE_DEVICES lets through, and what their ranks are started with."""

from pathlib import Path
from typing import Any

import pytest

from gpualloc.errors import UsageError
from gpualloc.launch import local_devices
from gpualloc.launch.job import Job, jobs_of
from gpualloc.launch.local import LocalEngine
from gpualloc.launch.torchrun import first_failure, last_line
from gpualloc.plan.records import PlannedDevice
from tests.launch import plans

MACHINE = [(0, "GPU-aaaa-1"), (1, "GPU-bbbb-2"), (None, "MIG-cccc-3")]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_devices, "read_gpus", lambda: MACHINE)
    monkeypatch.setattr(local_devices, "foreign_processes", lambda uuids: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def job(*devices: PlannedDevice, **fields: Any) -> Job:
    planned = plans.assignment("vision", command=("train.py",), devices=devices, num_gpus=len(devices), gpu_type="H100", **fields)
    return jobs_of(plans.plan(planned))[0]


def gpu(index: int, uuid: str | None = None) -> PlannedDevice:
    return PlannedDevice(node="localhost", index=index, uuid=uuid)


def test_a_lease_has_the_same_name_whether_the_plan_knows_the_uuid_or_not() -> None:
    assert local_devices.device_names(job(gpu(1), gpu(0, "GPU-aaaa-1"))) == ("GPU-bbbb-2", "GPU-aaaa-1")
    assert local_devices.device_names(job(gpu(0, "MIG-cccc-3"))) == ("MIG-cccc-3",)
    with pytest.raises(UsageError, match=r"the plan has GPU 7 of localhost, which is not here; there are: 0 \(GPU-aaaa-1\), "):
        local_devices.device_names(job(gpu(7)))


@pytest.mark.parametrize("visible", ["1", "0,1", "GPU-bbbb-2", "GPU-bb", " 0, GPU-bbbb"])
def test_cuda_visible_devices_is_understood(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_devices.device_names(job(gpu(1))) == ("GPU-bbbb-2",)


@pytest.mark.parametrize("visible", ["", "0", "GPU-aaaa", "MIG-cccc-3", "-1"])
def test_a_gpu_that_it_hides_is_refused(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match="does not name it"):
        local_devices.device_names(job(gpu(1)))


def test_what_a_job_on_gpus_is_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_devices.os, "sched_getaffinity", lambda pid: set(range(64)))
    engine = LocalEngine(node=None, warn=print)
    monkeypatch.setattr(local_devices, "can_bind_to_numa_nodes", lambda job: True)
    text = engine.render(job(gpu(1), gpu(0, "GPU-aaaa-1"), strategy="ddp"), tmp_path)
    for part in ("CUDA_VISIBLE_DEVICES=GPU-bbbb-2,GPU-aaaa-1", "OMP_NUM_THREADS=21", "--nproc-per-node 2", "--numa-binding node"):
        assert part in text
    one_process = engine.render(job(gpu(0), gpu(1), strategy="data_parallel"), tmp_path)
    assert "--nproc-per-node 1" in one_process
    assert "GPUALLOC_STRATEGY=data_parallel" in one_process


def test_ranks_are_bound_where_there_is_more_than_one_numa_node(tmp_path: Path) -> None:
    for node in range(2):
        assert not local_devices.can_bind_to_numa_nodes(job(gpu(0)), nodes=tmp_path)
        (tmp_path / f"node{node}").mkdir()
    assert local_devices.can_bind_to_numa_nodes(job(gpu(0)), nodes=tmp_path)


def test_the_first_failure_is_read_from_torchruns_table(tmp_path: Path) -> None:
    table = """
Failures:
[1]:
  rank      : 3 (local_rank: 1)
  exitcode  : 1 (pid: 11)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-26_12:00:00
  host      : node
  rank      : 2 (local_rank: 0)
  exitcode  : -9 (pid: 10)
"""
    found = first_failure(table)
    assert found is not None
    assert (found.rank, found.exit_code) == (2, -9)
    assert first_failure("rank : 2") is None
    log = tmp_path / "rank2.log"
    log.write_text("Traceback (most recent call last):\nValueError: no such layer\n[W] a warning at exit\n\n")
    assert last_line(log) == "ValueError: no such layer"
    assert last_line(tmp_path / "none.log") == ""
