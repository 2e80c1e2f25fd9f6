"""Plans over cores of this machine that stand in for GPUs, and what they run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpualloc.plan.records import Assignment, Plan, PlannedCluster, PlannedDevice, PlannedNode, PlannedRate, write_plan

ROOT = Path(__file__).parents[2]


def assignment(name: str, *, command: tuple[str, ...], cores: tuple[int, ...] = (0,), **fields: Any) -> Assignment:
    """On cores of this machine."""
    defaults: dict[str, Any] = {
        "devices": tuple(PlannedDevice(node="localhost", index=index) for index in cores),
        "gpu_type": "cpu",
        "num_gpus": len(cores),
        "num_nodes": 1,
        "strategy": "ddp" if len(cores) > 1 else "single",
        "precision": "fp32",
        "hook": "none",
        "per_device_batch_size": 8,
        "grad_accum_steps": 1,
        "learning_rate_factor": 1.0,
        "start_s": 0.0,
        "finish_s": 60.0,
        "samples_per_s": PlannedRate(value=100.0, low=90.0, high=110.0, source="table"),
        "max_restarts": 0,
    }
    return Assignment(workload=name, command=command, **{**defaults, **fields})


def plan(*assignments: Assignment, **fields: Any) -> Plan:
    nodes = sorted({device.node for each in assignments for device in each.devices})
    cluster = PlannedCluster(name="test", nodes=tuple(PlannedNode(name=node, gpu_type="cpu", num_gpus=8) for node in nodes))
    return Plan(
        created_at_utc="2026-11-26T12:00:00+00:00", objective="makespan", seed=0, cluster=cluster, assignments=assignments, **fields
    )


def write(folder: Path, *assignments: Assignment, **fields: Any) -> Path:
    path = folder / "plan.json"
    write_plan(plan(*assignments, **fields), path)
    return path


def environment(folder: Path) -> dict[str, str]:
    """Of a gpualloc whose files are all in `folder`."""
    return {
        **os.environ,
        "GPUALLOC_STATE": str(folder / "state.sqlite"),
        "GPUALLOC_STORE": str(folder / "results.sqlite"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """`gpualloc ARGUMENTS...` with its files in `folder`."""
    program = "from gpualloc.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    process = start(folder, *arguments)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
