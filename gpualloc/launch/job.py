"""A job: one workload of a plan, as any engine can run it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpualloc.errors import UsageError
from gpualloc.strategies import ONE_PROCESS

if TYPE_CHECKING:
    from gpualloc.plan.records import Assignment, MeasuringSlot, Plan, PlannedDevice


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to run, and on what."""

    name: str  # of the workload
    command: tuple[str, ...]  # what every rank runs, or the one process where `is_bare`
    devices: tuple[PlannedDevice, ...]
    gpu_type: str  # "cpu" in any case: cores stand in for GPUs
    num_nodes: int
    devices_per_node: int
    ranks_per_node: int  # 1 where one process drives all GPUs
    settings: dict[str, str] = field(default_factory=dict)  # environment that `gpualloc.train` reads
    environment: dict[str, str] = field(default_factory=dict)  # the user's own
    max_restarts: int = 0
    is_bare: bool = False  # a command that starts its own ranks, such as gpualloc bench
    shares_with: tuple[str, ...] = ()  # names of jobs on the same devices at the same time
    assignment: Assignment | None = None  # None: to be measured

    @property
    def is_cpu(self) -> bool:
        return self.gpu_type.lower() == "cpu"

    @property
    def file_name(self) -> str:
        """The name without what could lead to another folder or end a line of a script."""
        return "".join(char if char.isalnum() or char in "-_." else "_" for char in self.name)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.num_nodes * self.ranks_per_node


def jobs_of(plan: Plan, *, only: tuple[str, ...] = ()) -> list[Job]:
    """The jobs of a plan in the order of their start, those that measure first where they start at the same time.

    Args:
        only: names of workloads; empty: all.

    Raises:
        UsageError: one has no command, or `only` names one that the plan does not start.
    """
    slots: list[Assignment | MeasuringSlot] = [*plan.measuring, *plan.assignments]
    names = [slot.workload for slot in slots]
    unknown = [name for name in only if name not in names]
    if unknown:
        waiting = {each.workload: each.reason for each in plan.waiting}
        why = f": it waits ({waiting[unknown[0]]})" if unknown[0] in waiting else ""
        raise UsageError(f"the plan does not start {unknown[0]!r}{why}; it starts: {', '.join(names) or 'nothing'}")
    return [_make(slot) for slot in sorted(slots, key=lambda slot: slot.start_s) if not only or slot.workload in only]


def settings_of(assignment: Assignment) -> dict[str, str]:
    """The environment in which `gpualloc.train.prepare` finds what was planned."""
    settings = {
        "GPUALLOC_JOB": assignment.workload,
        "GPUALLOC_STRATEGY": assignment.strategy,
        "GPUALLOC_PRECISION": assignment.precision,
        "GPUALLOC_HOOK": assignment.hook,
        "GPUALLOC_PER_DEVICE_BATCH_SIZE": str(assignment.per_device_batch_size),
        "GPUALLOC_GRAD_ACCUM_STEPS": str(assignment.grad_accum_steps),
        "GPUALLOC_LEARNING_RATE_FACTOR": repr(assignment.learning_rate_factor),
    }
    if assignment.checkpoint is not None:
        settings["GPUALLOC_CHECKPOINT"] = os.path.abspath(assignment.checkpoint)
    return settings


def _make(slot: Assignment | MeasuringSlot) -> Job:
    from gpualloc.plan.records import MeasuringSlot

    per_node = Counter(device.node for device in slot.devices)
    if len(set(per_node.values())) > 1:
        seen = ", ".join(f"{count} on {node}" for node, count in per_node.items())
        raise UsageError(f"workload {slot.workload!r} has {seen}: torchrun starts as many ranks on every node; plan equal shares")
    devices_per_node = next(iter(per_node.values()), 0)
    if isinstance(slot, MeasuringSlot):
        return Job(
            name=slot.workload,
            command=slot.command,
            devices=slot.devices,
            gpu_type=slot.gpu_type,
            num_nodes=len(per_node),
            devices_per_node=devices_per_node,
            ranks_per_node=1,
            is_bare=True,
        )
    if not slot.command:
        raise UsageError(
            f"workload {slot.workload!r} names no script to run; give it a command in the workloads file, such as "
            "command: [python, train.py], or leave it out with --only"
        )
    if not slot.devices:
        raise UsageError(f"workload {slot.workload!r} has no devices in the plan; write the plan again with gpualloc plan")
    return Job(
        name=slot.workload,
        command=slot.command,
        devices=slot.devices,
        gpu_type=slot.gpu_type,
        num_nodes=len(per_node),
        devices_per_node=devices_per_node,
        ranks_per_node=1 if slot.strategy in ONE_PROCESS else devices_per_node,
        settings=settings_of(slot),
        environment=slot.environment,
        max_restarts=slot.max_restarts,
        shares_with=slot.shares_gpu_with,
        assignment=slot,
    )
