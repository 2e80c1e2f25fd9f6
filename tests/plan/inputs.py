"""Workloads, clusters and measurements to plan with, made by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.outcome import Impossible, Planned
from gpualloc.plan.planner import make_plan
from gpualloc.plan.preparing import PlanOptions
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Plan
from gpualloc.plan.workloads import WorkloadsFile
from gpualloc.records import Measurement
from tests.store.sample_measurements import GPU_ENVIRONMENT, image_case, measured

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=timezone.utc)
HOUR_S = 3600.0


def workload(name: str = "photos", *, rates: dict[tuple[str, int], float] | list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    """An image workload of an hour at 100 samples per second; `rates`: (GPU type, count) -> samples per second."""
    table = (
        rates
        if isinstance(rates, list)
        else [
            {"gpu_type": gpu_type, "num_gpus": count, "samples_per_s": rate, "memory_gib": 4.0}
            for (gpu_type, count), rate in ({("A100", 1): 100.0} if rates is None else rates).items()
        ]
    )
    return {
        "name": name,
        "kind": "image",
        "model": "mobilenet_v2",
        "image_size_px": 200,
        "dataset_size": 360_000,
        "epochs": 1,
        "batch": {"global_batch_size": 128},
        "precisions": ["fp16"],
        "rates": table,
        **fields,
    }


def workloads_file(*workloads: dict[str, Any], **fields: Any) -> WorkloadsFile:
    return WorkloadsFile.model_validate({"workloads": list(workloads), **fields})


def cluster(*nodes: dict[str, Any], **fields: Any) -> ClusterFile:
    """Nodes of A100s with 80 GiB unless they say otherwise."""
    filled = [{"name": f"n{number}", "gpu_type": "A100", "num_gpus": 4, "memory_gib": 80, **node} for number, node in enumerate(nodes)]
    return ClusterFile.model_validate({"nodes": filled, **fields})


def plan_of(
    file: WorkloadsFile,
    nodes: ClusterFile,
    *,
    knowledge: Knowledge | None = None,
    now_utc: datetime = NOW,
    current: Plan | None = None,
    **options: Any,
) -> Planned:
    found = make_plan(file, nodes, knowledge or Knowledge(), PlanOptions(**options), now_utc=now_utc, current=current)
    assert isinstance(found, Planned), found
    return found


def impossible(file: WorkloadsFile, nodes: ClusterFile, *, knowledge: Knowledge | None = None, **options: Any) -> Impossible:
    found = make_plan(file, nodes, knowledge or Knowledge(), PlanOptions(**options), now_utc=NOW)
    assert isinstance(found, Impossible)
    return found


def a100_row(step_time_s: float, **changes: Any) -> Measurement:
    """A measurement of `workload()`'s model on an A100."""
    environment = replace(GPU_ENVIRONMENT, device_name="NVIDIA A100-SXM4-80GB")
    fields = {name: changes.pop(name) for name in ("peak_memory_bytes", "compute_time_s") if name in changes}
    return measured(image_case(**changes), step_time_s, environment=environment, **fields)


def single(**changes: Any) -> dict[str, Any]:
    return {"strategy": "single", "world_size": 1, **changes}
