"""What a plan changes of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from gpualloc.plan.records import Assignment, Plan, PlannedDevice
from gpualloc.plan.running import started_workloads
from gpualloc.plan.workloads import Workload

Kind = Literal["stays", "moves", "starts", "is rescheduled", "stops", "ends", "waits"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What becomes of one workload."""

    workload: str
    kind: Kind
    before: str | None  # such as "4 x A100 (big: 0-3)"
    after: str | None
    restart_cost_s: float = 0.0

    @property
    def text(self) -> str:
        if self.kind == "moves":
            return f"{self.workload} moves: {self.before} -> {self.after}, a restart of {self.restart_cost_s:.0f} s"
        if self.kind == "is rescheduled":
            return f"{self.workload} is rescheduled: {self.before} -> {self.after}"
        where = self.before if self.kind in ("ends", "stops") else self.after
        return f"{self.workload} {self.kind}" + (f": {where}" if where else "")


def differences(before: Plan | None, after: Plan, workloads: Mapping[str, Workload], *, elapsed_s: float = 0.0) -> list[Difference]:
    """By workload, those of the new plan first.

    Args:
        elapsed_s: since the old plan was made: what had started by then runs.
    """
    old = {each.workload: each for each in before.assignments} if before is not None else {}
    named = {each.workload for each in after.assignments} | {each.workload for each in after.waiting}
    started = started_workloads(before, named, elapsed_s) if before is not None else set()
    result = []
    for each in after.assignments:
        was = old.get(each.workload)
        ran = each.workload in started
        kind: Kind = "starts" if was is None else "stays" if _is_same(was, each, ran=ran) else "moves" if ran else "is rescheduled"
        result.append(
            Difference(
                workload=each.workload,
                kind=kind,
                before=None if was is None else _where(was, elapsed_s),
                after=_where(each, 0.0),
                restart_cost_s=workloads[each.workload].restart_cost_s if kind == "moves" else 0.0,
            )
        )
    for waiting in after.waiting:
        was = old.get(waiting.workload)
        kind = "stops" if waiting.workload in started else "waits"
        result.append(
            Difference(workload=waiting.workload, kind=kind, before=None if was is None else _where(was, elapsed_s), after=waiting.reason)
        )
    result += [
        Difference(workload=name, kind="ends", before=_where(was, elapsed_s), after=None) for name, was in old.items() if name not in named
    ]
    return result


def _is_same(a: Assignment, b: Assignment, *, ran: bool) -> bool:
    same = ("gpu_type", "devices", "strategy", "precision", "hook", "per_device_batch_size", "grad_accum_steps")
    return all(getattr(a, name) == getattr(b, name) for name in same) and (ran is (b.start_s == 0.0))


def _where(assignment: Assignment, elapsed_s: float) -> str:
    start_s = assignment.start_s - elapsed_s
    when = f" in {duration_text(start_s)}" if start_s > 0 else ""
    return f"{assignment.num_gpus} x {assignment.gpu_type} ({devices_text(assignment.devices)}){when}"


def devices_text(devices: Sequence[PlannedDevice]) -> str:
    """ "big: 0-3, small: 0 2"."""
    parts = []
    for node, members in groupby(sorted(devices, key=lambda each: (each.node, each.index)), key=lambda each: each.node):
        indices = [each.index for each in members]
        runs: list[list[int]] = []
        for index in indices:
            if runs and runs[-1][-1] == index - 1:
                runs[-1].append(index)
            else:
                runs.append([index])
        parts.append(f"{node}: " + " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs))
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """ "0.4 s", "35 s", "12 min", "3.4 h", "2.1 d"."""
    for unit, name, digits in ((86_400.0, "d", 1), (3_600.0, "h", 1), (60.0, "min", 0)):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds:.{0 if seconds >= 1.95 else 1}f} s"
