"""The plan file: what `gpualloc plan` writes and `gpualloc run` makes happen, as versioned JSON.

Times are seconds from `Plan.created_at_utc`. Assignments on the same device follow one another, unless they name each other in
`shares_gpu_with`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpualloc.errors import UsageError
from gpualloc.plain_data import from_json
from gpualloc.whole_files import write_whole

PLAN_SCHEMA_VERSION = 2  # 2: what a waiting workload has done

_CLOSED = {"extra": "forbid"}  # pydantic's: a misspelt field is an error, not a default

Objective = Literal["mean_jct", "makespan", "cost", "throughput_per_money"]
OBJECTIVES: tuple[Objective, ...] = ("mean_jct", "makespan", "cost", "throughput_per_money")


@dataclass(frozen=True, kw_only=True)
class PlannedDevice:
    """One GPU, by its place and, where it is known, by its name of its own."""

    __pydantic_config__ = _CLOSED

    node: str
    index: int  # on the node, in NVML's order
    uuid: str | None = None  # as NVML writes it, with "GPU-" or "MIG-" before it


@dataclass(frozen=True, kw_only=True)
class PlannedNode:
    """A node as the plan saw it."""

    __pydantic_config__ = _CLOSED

    name: str
    gpu_type: str
    num_gpus: int
    memory_gib: float | None = None  # of one GPU
    unavailable: tuple[int, ...] = ()  # indices of GPUs that were reserved or busy with what is not ours
    device: Literal["cuda", "cpu"] = "cuda"  # "cpu": cores in place of GPUs


@dataclass(frozen=True, kw_only=True)
class PlannedCluster:
    """The cluster that was planned for."""

    __pydantic_config__ = _CLOSED

    name: str
    nodes: tuple[PlannedNode, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedRate:
    """Samples (images or sequences) per second of a whole job, over all its GPUs."""

    __pydantic_config__ = _CLOSED

    value: float
    low: float  # the interval's slow end
    high: float
    source: str  # "measured", "rehearsed", "forecast", "table": and from what, in words


@dataclass(frozen=True, kw_only=True)
class Money:
    """An amount; amounts of two currencies are never added."""

    __pydantic_config__ = _CLOSED

    value: float
    currency: str  # ISO 4217, such as "USD"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One workload on its devices, from `start_s` to `finish_s`."""

    __pydantic_config__ = _CLOSED

    workload: str
    devices: tuple[PlannedDevice, ...]
    gpu_type: str
    num_gpus: int
    num_nodes: int
    strategy: str  # as in gpualloc.strategies
    precision: str  # as in gpualloc.bench.precision
    hook: str  # of ddp, as in gpualloc.strategies; else "none"
    per_device_batch_size: int  # samples of one backward pass
    grad_accum_steps: int
    learning_rate_factor: float  # for the learning rate that the workload has at its reference batch
    start_s: float
    finish_s: float
    samples_per_s: PlannedRate
    cost: Money | None = None  # None: the cluster has no price for these GPUs
    memory_gib: float | None = None  # most that a GPU has in use, and None where it can be neither measured nor estimated
    command: tuple[str, ...] | None = None  # what to start on every GPU; None: the workload names no script
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    max_restarts: int = 3
    checkpoint: str | None = None
    shares_gpu_with: tuple[str, ...] = ()  # workloads on the same GPU at the same time
    model: str | None = None
    kind: Literal["image", "llm"] | None = None
    image_size_px: int | None = None
    sequence_length: int | None = None
    tuning: Literal["full", "lora"] = "full"
    samples_total: float | None = None  # that the workload trains on from its first start to its end
    samples_done: float = 0.0  # of them before `start_s`


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A workload that gets nothing, and why."""

    __pydantic_config__ = _CLOSED

    workload: str
    reason: str
    samples_done: float = 0.0  # before it was stopped


@dataclass(frozen=True, kw_only=True)
class MeasuringSlot:
    """A workload whose rate nobody knows is measured first, for a short time, on as few GPUs as it may have."""

    __pydantic_config__ = _CLOSED

    workload: str
    devices: tuple[PlannedDevice, ...]
    gpu_type: str
    command: tuple[str, ...]  # `gpualloc bench ...`, whose result the next plan reads from the store
    start_s: float
    finish_s: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who gets which GPUs, when and with which settings."""

    __pydantic_config__ = _CLOSED

    created_at_utc: str  # ISO 8601
    objective: Objective
    seed: int
    cluster: PlannedCluster
    assignments: tuple[Assignment, ...]  # by start, then by name
    waiting: tuple[Waiting, ...] = ()
    measuring: tuple[MeasuringSlot, ...] = ()
    is_pessimistic: bool = False  # times are by the slow end of each rate


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON types, with "schema_version"."""
    return {"schema_version": PLAN_SCHEMA_VERSION, **dataclasses.asdict(plan)}


def plan_from_json(data: object, *, file: str) -> Plan:
    """The plan that `plan_to_json` wrote.

    Args:
        file: named in messages.

    Raises:
        UsageError: not a plan, of a newer schema, or with fields that are missing, unknown or of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    from gpualloc.plan.file_errors import describe

    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UsageError(f"{file} is not a plan: schema_version is {version!r}; write one with: gpualloc plan --out {file}")
    if version > PLAN_SCHEMA_VERSION:
        raise UsageError(f"{file} is a plan of schema {version}, this gpualloc reads up to {PLAN_SCHEMA_VERSION}; upgrade gpualloc")
    fields = {name: value for name, value in data.items() if name != "schema_version"}
    try:
        plan: Plan = TypeAdapter(Plan).validate_python(fields)
    except ValidationError as error:
        raise UsageError(f"{file} is not a plan: {describe(error)}; write it again with: gpualloc plan --out {file}") from error
    return plan


def read_plan(file: Path) -> Plan:
    """The plan in a file.

    Raises:
        UsageError: it cannot be read, is not JSON or not a plan.
    """
    try:
        data = from_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {file}: {error.strerror}; write one with: gpualloc plan --out {file}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}; write it again with: gpualloc plan --out {file}") from error
    return plan_from_json(data, file=str(file))


def write_plan(plan: Plan, file: Path) -> None:
    """Writes the plan so that a reader sees the old one or the new one, never half of one.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(file, json.dumps(plan_to_json(plan), indent=1, allow_nan=False) + "\n")
